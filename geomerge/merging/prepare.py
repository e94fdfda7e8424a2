"""Checkpoints and options -> sides that belong together, or one sentence why they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geomerge.data import check_normalised, split_normalisations
from geomerge.data.batchnorm import has_statistics
from geomerge.errors import CheckpointError, OptionError
from geomerge.io.checkpoint import Checkpoint
from geomerge.merging.aligning import align_sides
from geomerge.merging.bring import load_data, load_side_sketch, recorded_task
from geomerge.merging.heads import arrange_heads, widen_metric
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import NAMES, Side, Sides
from geomerge.metrics.sketch import Sketch
from geomerge.networks.architectures import rebuild_network, recognise
from geomerge.networks.network import Network

__all__ = ["assign_manifolds", "prepare_sides", "refuse_unknown_names"]


def prepare_sides(checkpoints: Sequence[Checkpoint], options: MergeOptions) -> Sides:
    """Build the network, check that all belong together, and load their tasks.

    Args:
        checkpoints: Network a, b, and so on.
        options: What the user said.

    Returns:
        The sides.

    Raises:
        CheckpointError: If they cannot be merged.
        OptionError: If manifolds are named that no side can take.
        TaskError: If data that was asked for cannot be had, or does not fit.
    """
    if len(checkpoints) < 2:
        raise OptionError(f"expected two networks or more, got {len(checkpoints)}; name them")
    if len(checkpoints) > len(NAMES):
        raise OptionError(f"expected at most {len(NAMES)} networks, got {len(checkpoints)}")
    names = NAMES[: len(checkpoints)]
    architecture = _common_architecture(checkpoints, options)
    if architecture is not None:  # what is written later must be as easy to rebuild
        meta = {"architecture": architecture}
        checkpoints = [replace(c, meta={**c.meta, **meta}) for c in checkpoints]
    if options.head == "shared":
        _check_same_shapes(checkpoints)
        modules = [rebuild_network(checkpoints[0].weights, architecture, checkpoints[0].source)]
    else:
        modules = [rebuild_network(c.weights, architecture, c.source) for c in checkpoints]
    wide, heads = arrange_heads(checkpoints, modules, options.head)
    _check_same_shapes(wide)
    module = rebuild_network(wide[0].weights, architecture, wide[0].source)
    network = Network(module, options.device)
    sides = Sides(network, [], options.head)
    if architecture is None:
        found = recognise(checkpoints[0].weights)
        sides.notes.append(
            f"{Path(checkpoints[0].source).name} does not say its architecture: recognised by its "
            f"weights as a {found}" + (", ReLU assumed between layers" if found == "mlp" else "")
        )
    for i, name in enumerate(names):
        view = network.head_view(heads.columns[i])
        own = network.ravel(wide[i].weights)
        side = Side(name, wide[i], view, own, heads.offsets[i], heads.rows[i])
        narrow = Network(modules[i], options.device) if heads.layer else network
        load_side_sketch(side, narrow, narrow.ravel(checkpoints[i].weights), options, sides.notes)
        if side.sketch is not None:
            metric = widen_metric(side.sketch.metric, narrow, network, heads, i)
            side.sketch = Sketch(metric, side.sketch.meta)
        sides.all.append(side)
    refuse_unknown_names(sides, options)
    for name, manifold in assign_manifolds(sides, options).items():
        sides[name].manifold_name = manifold
    for side in sides:
        load_data(side, options, sides.notes)
    _refuse_unused_normalisations(sides, options)
    known = [s.task.name for s in sides if s.task]
    if heads.layer is not None and len(set(known)) < len(known):
        raise OptionError(
            f"two networks are for {max(known, key=known.count)}, and `head` {options.head} gives "
            "each task outputs of its own; use `head` shared"
        )
    if options.align != "none":
        align_sides(sides, heads, options)
    if has_statistics(network):
        sides.bn = _statistics_policy(sides, options)
    elif options.bn is not None:
        sides.notes.append("the network has no running statistics: `bn` changes nothing")
    return sides


def _statistics_policy(sides: Sides, options: MergeOptions) -> str:
    blind = [s.name for s in sides if s.manifold is None]
    if options.bn == "re-estimate" and blind:
        raise OptionError(
            f"`bn` re-estimate needs inputs of every network's task and {' and '.join(blind)} has "
            "none; name them with `inputs`, or use `bn` keep"
        )
    shapes = {s.manifold.shape for s in sides if s.manifold is not None}
    if options.bn == "re-estimate" and len(shapes) > 1:
        raise OptionError(
            "`bn` re-estimate mixes inputs of all tasks, and theirs have different shapes; use "
            "`bn` keep"
        )
    return options.bn or ("keep" if blind or len(shapes) > 1 else "re-estimate")


def _common_architecture(checkpoints: Sequence[Checkpoint], options: MergeOptions) -> str | None:
    recorded = {c.meta["architecture"]: c for c in checkpoints if c.meta.get("architecture")}
    if options.arch is None and len(recorded) > 1:
        kinds = " and ".join(f"{c.source} a {kind}" for kind, c in recorded.items())
        raise CheckpointError(
            f"expected networks of one architecture, got {kinds}; say which to take all for with "
            "`arch`"
        )
    return options.arch or next(iter(recorded), None)


def _check_same_shapes(checkpoints: Sequence[Checkpoint]) -> None:
    a = checkpoints[0]
    one = {k: tuple(v.shape) for k, v in a.weights.items()}
    for b in checkpoints[1:]:
        two = {k: tuple(v.shape) for k, v in b.weights.items()}
        different = [k for k in {**one, **two} if one.get(k) != two.get(k)]
        if not different:
            continue
        last = list(one)[-1]
        known = all(k in one and k in two for k in different)
        if known and set(different) <= set(list(one)[-2:]):
            raise CheckpointError(
                f"{a.source} and {b.source} have different heads: {last!r} has shape {one[last]} "
                f"and {two[last]}; expected one head shared by all tasks: say `head` offset or "
                "`head` separate, or train all with as many outputs"
            )
        key = different[0]
        raise CheckpointError(
            f"{a.source} and {b.source} are not of one architecture: {key!r} has shape "
            f"{one.get(key, 'none')} and {two.get(key, 'none')}; expected equal names and shapes: "
            "give networks of the same make"
        )


def refuse_unknown_names(sides: Sides, options: MergeOptions) -> None:
    """Refuse options that speak of a network that is not there.

    Raises:
        OptionError: With the name and the names there are.
    """
    names = [s.name for s in sides]
    given = {
        "manifold": options.manifolds()[0],
        "sketch": options.by_network("sketch"),
        "task": options.by_network("task"),
        "budget": {text.partition("/")[0]: text for text in options.budgets()},
    }
    for flag, found in given.items():
        for name in found:
            if name not in names:
                raise OptionError(
                    f"--{flag} speaks of network {name!r}, and the networks are "
                    f"{', '.join(names)}; name one of them"
                )


def assign_manifolds(sides: Sides, options: MergeOptions) -> dict[str, str]:
    """Return the manifold's name for each side that has one.

    Raises:
        OptionError: If more are named than there are networks.
    """
    given, rest = options.manifolds()
    if len(given) + len(rest) > len(sides.all):
        raise OptionError(
            f"expected at most {len(sides.all)} manifolds, one for each network, got "
            f"{len(options.manifold)}; leave the others out"
        )
    recorded = {s.name: recorded_task(s, options) for s in sides}
    for name in list(rest):  # those whose task is known to be one network's
        owners = [k for k, task in recorded.items() if task == name and k not in given]
        if len(owners) == 1:
            given[owners[0]] = name
            rest.remove(name)
    for name in rest:
        given[next(k for k in recorded if k not in given)] = name
    for side, name in given.items():
        if recorded[side] is not None and recorded[side] != name:
            sides.notes.append(
                f"{side} was trained for {recorded[side]}, and its function is kept on {name}"
            )
    return given


def _refuse_unused_normalisations(sides: Sides, options: MergeOptions) -> None:
    tasks = {s.task.name for s in sides if s.task}
    tasks |= {s.manifold_name for s in sides if s.manifold_name}
    check_normalised(split_normalisations(options.normalisation), tasks, "used")
