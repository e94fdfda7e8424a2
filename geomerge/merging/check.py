"""Files and options -> all that is in the way of a merge, or what the merge will be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from geomerge.alignment.groups import find_groups
from geomerge.data import load_task, recorded_normalisation
from geomerge.errors import OptionError
from geomerge.io.checkpoint import Checkpoint, load_checkpoint, load_header
from geomerge.merging.bring import load_data, load_side_sketch, recorded_task
from geomerge.merging.cost import estimate_memory, estimate_time
from geomerge.merging.fitting import fit_memory
from geomerge.merging.limits import stage_constraints
from geomerge.merging.measuring import manifold_of
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import assign_manifolds, prepare_sides, refuse_unknown_names
from geomerge.merging.presets.base import Preset, choose_preset, choose_rule
from geomerge.merging.problems import Problems, compare_networks
from geomerge.merging.sides import NAMES, Side, Sides
from geomerge.networks.architectures import rebuild_network, recognise
from geomerge.networks.network import Network, check_device
from geomerge.walks.state import WalkState

__all__ = ["Check", "check_merge"]


@dataclass
class Check:
    """What was found.

    Attributes:
        networks: What each brings, by name: ``file``, ``architecture``, ``weights``, ``outputs``,
            ``task``, ``manifold``, ``inputs``, ``sketch``, ``labels``.
        preset: What the merge would choose; None where something is wrong.
        memory: Bytes, by what they are for.
        time: Seconds by part, and steps by walk.
        problems: A sentence with its remedy each.
        notes: What is not wrong but good to know.
    """

    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    preset: str | None = None
    memory: dict[str, int] | None = None
    time: dict[str, Any] | None = None
    problems: Problems = field(default_factory=Problems)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON keeps it."""
        return {**asdict(self), "problems": list(self.problems)}


def check_merge(files: Sequence[str | Path], options: dict[str, Any]) -> Check:
    """Look at everything that a merge will need, and take a few steps to see what it costs.

    Args:
        files: The networks.
        options: Of :class:`~geomerge.merging.MergeOptions`, by name.

    Returns:
        All problems at once. Without any, the merge's preset and estimates of its cost.

    Example:
        >>> from geomerge.merging.check import check_merge
        >>> check_merge(["no-such-file.pt", "nor-this.pt"], {"manifold": ("digits",)}).problems[0]
        'no file no-such-file.pt; check the name'
    """
    check = Check()
    chosen = _options(options, check.problems)
    if len(files) < 2 or len(files) > len(NAMES):
        check.problems.note(
            f"expected two networks to {len(NAMES)}, got {len(files)}; name their files"
        )
    checkpoints = _read(files, chosen, check.problems)
    sides = _sides(checkpoints, chosen, check)
    for side in sides:
        with check.problems.noted():
            load_side_sketch(side, side.network, side.w, chosen, check.notes)
            _compare_normalisations(side, check.problems)
    if sides and len(sides) == len(files):
        _bring(Sides(sides[0].network, sides, chosen.head), chosen, check)
    else:  # nobody knows whose the manifolds are
        for text in chosen.manifold:
            with check.problems.noted():
                load_task(text.partition("=")[2] or text, data_root=chosen.data_root)
    for side in sides:
        check.networks[side.name] = _describe(side, chosen)
    if not chosen.manifold:
        check.problems.note(
            "no inputs to walk on; name the task of one network with `inputs`, such as mnist"
        )
    if not check.problems:
        _plan(list(checkpoints.values()), chosen, check)
    return check


def _read(
    files: Sequence[str | Path], options: MergeOptions, problems: Problems
) -> dict[str, Checkpoint]:
    """Read the networks; none whose header says already that they do not belong together.

    The format of ``.pt`` files has no header: they are read whole.
    """
    found: dict[str, Checkpoint] = {}
    for name, file in zip(NAMES, files, strict=False):
        with problems.noted():
            light = Path(file).suffix == ".safetensors"
            found[name] = load_header(file) if light else load_checkpoint(file)
    known = len(problems)
    if found:
        compare_networks(list(found.values()), options.head, options.arch, problems)
    if len(problems) > known:
        return {name: c for name, c in found.items() if c.digest}
    for name, file in zip(NAMES, files, strict=False):
        if name in found and not found[name].digest:
            del found[name]
            with problems.noted():
                found[name] = load_checkpoint(file)
    return dict(sorted(found.items()))


def _options(given: dict[str, Any], problems: Problems) -> MergeOptions:
    """Return the options, the default in the place of each that cannot be used."""
    good = {}
    for name, value in given.items():
        for one in value if isinstance(value, tuple) else ():
            with problems.noted():
                MergeOptions(**dict[str, Any]({name: (one,)}))
        with problems.noted():
            MergeOptions(**{name: value})
            good[name] = value
    with problems.noted():
        check_device(good.get("device", "cpu"))
        return MergeOptions(**good)
    good.pop("device", None)
    try:
        return MergeOptions(**good)
    except OptionError:  # each is good, not all of them together
        return MergeOptions()


def _sides(checkpoints: dict[str, Checkpoint], options: MergeOptions, check: Check) -> list[Side]:
    """Build every network by itself, as it came."""
    built = []
    for name, checkpoint in checkpoints.items():
        architecture = options.arch or checkpoint.meta.get("architecture")
        with check.problems.noted():
            module = rebuild_network(checkpoint.weights, architecture, checkpoint.source)
            network = Network(module, options.device)
            built.append(Side(name, checkpoint, network, network.ravel(checkpoint.weights)))
    return built


def _bring(sides: Sides, options: MergeOptions, check: Check) -> None:
    """Load the data of each network, and let the plan say what is missing."""
    problems = check.problems
    named: dict[str, str] = {}
    with problems.noted():
        refuse_unknown_names(sides, options)
        named = assign_manifolds(sides, options)
    for side in sides:
        side.manifold_name = named.get(side.name)
        with problems.noted():
            load_data(side, options, check.notes)
    if named and all(sides[name].manifold is not None for name in named):
        with problems.noted():
            preset = choose_preset(sides, options)
            _choices(preset, options, problems)
            kept = {s.name: s for stage in preset.stages for s in stage.kept}
            blind = [name for name, s in kept.items() if s.manifold is None]
            if blind and options.metric in ("exact", "gram"):
                problems.note(
                    f"`metric` {options.metric} needs inputs of {' and '.join(blind)}; name them "
                    "with `inputs`, or use `metric` kronecker with its sketch"
                )


def _choices(preset: Preset, options: MergeOptions, problems: Problems) -> None:
    """Hold what the options ask for against what the networks and their data allow."""
    space = preset.space
    with problems.noted():
        choose_rule(preset, options)
    for text in options.budget:
        one = type(preset)(space, replace(options, budget=(text,)))
        for stage in one.stages:
            with problems.noted():
                stage_constraints(one, stage, space.all[0].w, WalkState())
    if options.align != "none":
        walked = preset.walked_on[0]
        with problems.noted():
            find_groups(walked.network, walked.w, manifold_of(walked).batch(slice(0, 2)))
    with problems.noted():
        fit_memory(space, options)


def _compare_normalisations(side: Side, problems: Problems) -> None:
    if side.sketch is None:
        return
    task = side.sketch.meta.get("task")
    own = recorded_normalisation(side.checkpoint.meta, task) if isinstance(task, str) else None
    seen = recorded_normalisation(side.sketch.meta, task) if isinstance(task, str) else None
    if own is not None and seen is not None and own != seen:
        problems.note(
            f"the sketch of {side.name} was measured on {task} with mean {seen.mean} and deviation "
            f"{seen.std}, and the network was trained with {own.mean} and {own.std}; make the "
            "sketch again with geomerge sketch"
        )


def _plan(checkpoints: Sequence[Checkpoint], options: MergeOptions, check: Check) -> None:
    """Prepare as the merge would and say what it would do."""
    with check.problems.noted():
        sides = prepare_sides(checkpoints, options)
        options = fit_memory(sides, options)
        check.notes = list(dict.fromkeys(sides.notes))
        preset = choose_preset(sides, options)
        check.preset = preset.name
        check.memory = estimate_memory(preset)
        check.time = estimate_time(preset)


def _describe(side: Side, options: MergeOptions) -> dict[str, Any]:
    meta, sketch = side.checkpoint.meta, side.sketch
    found = meta.get("architecture") or options.arch or recognise(side.checkpoint.weights)
    return {
        "file": side.checkpoint.source,
        "architecture": found,
        "weights": side.network.n,
        "task": recorded_task(side, options),
        "labels": side.task is not None,
        "manifold": side.manifold_name,
        "inputs": None if side.manifold is None else len(side.manifold),
        "sketch": None
        if sketch is None
        else {
            "task": sketch.meta.get("task"),
            "inputs": sketch.meta.get("inputs"),
            "numbers_per_weight": sum(t.numel() for t in sketch.tensors().values())
            / side.network.n,
        },
    }
