"""What each of the two networks brings to a merge: weights, inputs, labels, a sketch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from geomerge.architectures import rebuild_network, recognise
from geomerge.checkpoint import Checkpoint
from geomerge.errors import CheckpointError, OptionError, TaskError, did_you_mean
from geomerge.merging.options import MergeOptions
from geomerge.metric.sketch import Sketch, load_sketch, restore_sketch
from geomerge.network import Network
from geomerge.tasks import (
    Inputs,
    Task,
    load_task,
    recorded_normalisation,
    split_normalisations,
)

__all__ = ["Side", "Sides", "prepare_sides"]


@dataclass
class Side:
    """One of the two networks.

    Attributes:
        name: ``"a"`` or ``"b"``.
        checkpoint: Its file.
        w: Its weights, shape (n,).
        sketch: Its metric on its own task; None without one.
        sketched_now: Whether the merge itself made the sketch, from the manifold's inputs.
        task: Its task with labels, for choosing and reporting; None if not known or not there.
        manifold: Inputs that the walk may use; None if none were given.
        manifold_name: The task that they are of.
    """

    name: str
    checkpoint: Checkpoint
    w: Tensor
    sketch: Sketch | None = None
    sketched_now: bool = False
    task: Task | None = None
    manifold: Inputs | None = None
    manifold_name: str | None = None


@dataclass
class Sides:
    """Both networks as points of one weight space, and what there is to say about them."""

    network: Network
    a: Side
    b: Side
    notes: list[str] = field(default_factory=list)


def prepare_sides(a: Checkpoint, b: Checkpoint, options: MergeOptions) -> Sides:
    """Build the network, check that the two belong together, and load their tasks.

    Args:
        a: Network a.
        b: Network b.
        options: What the user said.

    Returns:
        Both sides.

    Raises:
        CheckpointError: If the two cannot be merged.
        OptionError: If manifolds are named that no side can take.
        TaskError: If data that was asked for cannot be had, or does not fit.
    """
    _check_same_shapes(a, b)
    architecture = _common_architecture(a, b, options)
    if architecture is not None:  # what is written later must be as easy to rebuild
        a, b = (replace(c, meta={**c.meta, "architecture": architecture}) for c in (a, b))
    network = Network(rebuild_network(a.weights, architecture, a.source), options.device)
    one, two = Side("a", a, network.initial), Side("b", b, network.ravel(b.weights))
    sides = Sides(network, one, two)
    if architecture is None:
        sides.notes.append(
            f"{a.source} does not say its architecture: recognised by its weights as a "
            f"{recognise(a.weights)}"
            + (", ReLU assumed between layers" if recognise(a.weights) == "mlp" else "")
        )
    for side in (one, two):
        _load_sketch(side, network, options, sides.notes)
    for name, manifold in _assign(sides, options).items():
        (one if name == "a" else two).manifold_name = manifold
    for side in (one, two):
        _load_data(side, network, options, sides.notes)
    _refuse_unused_normalisations(sides, options)
    return sides


def _common_architecture(a: Checkpoint, b: Checkpoint, options: MergeOptions) -> str | None:
    recorded = [c.meta["architecture"] for c in (a, b) if c.meta.get("architecture")]
    if options.arch is None and len(set(recorded)) > 1:
        raise CheckpointError(
            f"{a.source} is a {recorded[0]} and {b.source} a {recorded[1]}, expected one "
            "architecture; say which to take both for with --arch"
        )
    return options.arch or (recorded[0] if recorded else None)


def _check_same_shapes(a: Checkpoint, b: Checkpoint) -> None:
    one = {k: tuple(v.shape) for k, v in a.weights.items()}
    two = {k: tuple(v.shape) for k, v in b.weights.items()}
    different = [k for k in {**one, **two} if one.get(k) != two.get(k)]
    if not different:
        return
    last = list(one)[-1]
    if all(k in one and k in two for k in different) and set(different) <= set(list(one)[-2:]):
        raise CheckpointError(
            f"{a.source} and {b.source} have different heads: {last!r} has shape {one[last]} and "
            f"{two[last]}; expected one head shared by both tasks: train both with as many outputs"
        )
    key = different[0]
    raise CheckpointError(
        f"{a.source} and {b.source} are not of one architecture: {key!r} has shape "
        f"{one.get(key, 'none')} and {two.get(key, 'none')}; expected equal names and shapes: "
        "give two networks of the same make"
    )


def _assign(sides: Sides, options: MergeOptions) -> dict[str, str]:
    """Return the manifold's name for each side that has one."""
    given, rest = options.manifolds()
    recorded = {s.name: _recorded_task(s, options) for s in (sides.a, sides.b)}
    for name in rest:
        if len(rest) == 1 and not given and name == recorded["b"] != recorded["a"]:
            given["b"] = name
            continue
        free = next(side for side in "ab" if side not in given)
        given[free] = name
    for side, name in given.items():
        if recorded[side] is not None and recorded[side] != name:
            sides.notes.append(
                f"{side} was trained for {recorded[side]}, and its function is kept on {name}"
            )
    return given


def _recorded_task(side: Side, options: MergeOptions) -> str | None:
    """Return the task that a side is said to be for: by the user, its file, or its sketch."""
    sketched = side.sketch.meta.get("task") if side.sketch else None
    return _explicit_task(side, options) or side.checkpoint.meta.get("task") or sketched


def _explicit_task(side: Side, options: MergeOptions) -> str | None:
    return options.task_a if side.name == "a" else options.task_b


def _load_data(side: Side, network: Network, options: MergeOptions, notes: list[str]) -> None:
    """Load a side's task, for choosing and reporting, and its manifold, for walking."""
    name = _recorded_task(side, options) or side.manifold_name
    if name is None:
        notes.append(f"{side.name} is not measured: nothing says its task")
        return
    meta = side.checkpoint.meta
    recorded = dict(side.sketch.meta) if side.sketch else {}
    own = split_normalisations(options.normalisation)

    def load(task: str, classes: bool) -> Task:
        found = load_task(
            task,
            data_root=options.data_root,
            download=options.download,
            normalisation=own.get(task)
            or recorded_normalisation(meta, task)
            or recorded_normalisation(recorded, task),
            device=options.device,
        )
        few = found.train.inputs.batch(slice(0, 4))
        network.check_inputs(side.w, few, found.classes if classes else 0, task)
        return found

    try:
        side.task = load(name, classes=True)
    except (TaskError, OptionError) as error:
        if name in (_explicit_task(side, options), side.manifold_name):
            raise
        notes.append(f"{side.name} is not measured: {error}")
    if side.manifold_name is not None:
        same = side.task is not None and side.manifold_name == name
        walked = side.task if same else load(side.manifold_name, classes=False)
        assert walked is not None
        side.manifold = walked.train.inputs
    if side.task is not None and "selection_seed" not in meta.get("training", {}):
        notes.append(
            f"{side.checkpoint.source} does not say what it was trained on: it may have seen the "
            f"selection split of {name}, so picks may favour {side.name}"
        )


def _load_sketch(side: Side, network: Network, options: MergeOptions, notes: list[str]) -> None:
    file = options.sketch_a if side.name == "a" else options.sketch_b
    if file is not None:
        side.sketch = load_sketch(file, network, side.w)
        if side.sketch.meta.get("output") != options.output:
            raise OptionError(
                f"{file} measures {side.sketch.meta.get('output')}, expected {options.output}; "
                f"make one with geomerge sketch --output {options.output}"
            )
    elif side.checkpoint.sketch:
        meta: dict[str, Any] = side.checkpoint.meta.get("sketch", {})
        if meta.get("output") != options.output:
            notes.append(
                f"the sketch in {side.checkpoint.source} is not used: it measures "
                f"{meta.get('output')}, not {options.output}"
            )
            return
        side.sketch = restore_sketch(
            side.checkpoint.sketch, meta, network, side.w, side.checkpoint.source
        )


def _refuse_unused_normalisations(sides: Sides, options: MergeOptions) -> None:
    tasks = {s.task.name for s in (sides.a, sides.b) if s.task}
    tasks |= {s.manifold_name for s in (sides.a, sides.b) if s.manifold_name}
    for name in split_normalisations(options.normalisation):
        if name not in tasks:
            raise OptionError(
                f"--normalisation names {name!r}, a task that is not used"
                f"{did_you_mean(name, tasks)}"
            )
