"""What each of the two networks brings to a merge: weights, inputs, labels, a sketch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from geomerge.architectures import rebuild_network
from geomerge.checkpoint import Checkpoint
from geomerge.errors import CheckpointError, OptionError, TaskError
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
        task: Its task with labels, for choosing and reporting; None if not known or not there.
        manifold: Inputs that the walk may use; None if none were given.
        sketch: Its metric on its own task; None without one.
        sketched_now: Whether the merge itself made the sketch, from the manifold's inputs.
    """

    name: str
    checkpoint: Checkpoint
    w: Tensor
    task: Task | None = None
    manifold: Inputs | None = None
    sketch: Sketch | None = None
    sketched_now: bool = False


@dataclass
class Sides:
    """Both networks as points of one weight space, and what there is to say about them."""

    network: Network
    a: Side
    b: Side
    notes: list[str] = field(default_factory=list)

    def other(self, side: Side) -> Side:
        """Return the side that is not this one."""
        return self.b if side is self.a else self.a


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
    architecture = options.arch or a.meta.get("architecture") or b.meta.get("architecture")
    if architecture is not None:  # what is written later must be as easy to rebuild
        a, b = (replace(c, meta={**c.meta, "architecture": architecture}) for c in (a, b))
    module = rebuild_network(a.weights, architecture, a.source)
    network = Network(module, options.device)
    sides = Sides(
        network,
        Side("a", a, network.initial),
        Side("b", b, network.ravel(b.weights)),
    )
    if architecture is None:
        sides.notes.append(
            f"{a.source} does not say its architecture: recognised by its weights as a "
            f"{type(module).__name__}, ReLU between layers assumed"
        )
    named = _assign(sides, options)
    for side in (sides.a, sides.b):
        _load_task(side, named.get(side.name), options, sides.notes)
        _load_sketch(side, network, options)
        if side.task is not None:
            network.check_inputs(
                side.w,
                side.task.train.inputs.batch(slice(0, 4)),
                side.task.classes,
                side.task.name,
            )
    return sides


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
    explicit = options.task_a if side.name == "a" else options.task_b
    return explicit or side.checkpoint.meta.get("task")


def _load_task(side: Side, manifold: str | None, options: MergeOptions, notes: list[str]) -> None:
    explicit = options.task_a if side.name == "a" else options.task_b
    name = explicit or manifold or side.checkpoint.meta.get("task")
    if name is None and side.checkpoint.sketch:
        name = side.checkpoint.meta.get("sketch", {}).get("task")
    if name is None:
        return
    meta = side.checkpoint.meta

    own = split_normalisations(options.normalisation)

    def load(task: str) -> Task:
        return load_task(
            task,
            data_root=options.data_root,
            download=options.download,
            normalisation=own.get(task) or recorded_normalisation(meta, task),
            device=options.device,
        )

    try:
        side.task = load(name)
    except TaskError as error:
        if explicit or manifold:
            raise
        notes.append(f"{side.name} is not measured: {error}")
    if manifold is not None:
        walked = side.task if manifold == name and side.task else load(manifold)
        side.manifold = walked.train.inputs
    if side.task is not None and "selection_seed" not in meta.get("training", {}):
        notes.append(
            f"{side.checkpoint.source} does not say what it was trained on: it may have seen the "
            f"selection split of {name}, so picks may favour {side.name}"
        )


def _load_sketch(side: Side, network: Network, options: MergeOptions) -> None:
    file = options.sketch_a if side.name == "a" else options.sketch_b
    if file is not None:
        side.sketch = load_sketch(file, network, side.w)
    elif side.checkpoint.sketch:
        meta: dict[str, Any] = side.checkpoint.meta.get("sketch", {})
        side.sketch = restore_sketch(
            side.checkpoint.sketch, meta, network, side.w, side.checkpoint.source
        )
    if side.sketch is not None and side.sketch.meta.get("output") != options.output:
        raise OptionError(
            f"the sketch of {side.name} measures {side.sketch.meta.get('output')}, expected "
            f"{options.output}; make one with geomerge sketch --output {options.output}"
        )
