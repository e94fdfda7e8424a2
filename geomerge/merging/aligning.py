"""Networks whose units stand in the order of the first's, before anything is walked."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from geomerge.alignment import align, permuted_metric
from geomerge.data import Inputs, as_they_are
from geomerge.errors import OptionError
from geomerge.merging.heads import Heads
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side, Sides
from geomerge.metrics.sketch import Sketch
from geomerge.networks.batches import concat

__all__ = ["align_sides"]

_INPUTS = 2000  # of all manifolds together


def align_sides(sides: Sides, heads: Heads, options: MergeOptions) -> None:
    """Permute the units of every network after the first, with its sketch and its checkpoint.

    Args:
        sides: The networks, their tasks and manifolds loaded.
        heads: How their heads were widened. Rows of other networks' classes count for nothing,
            and follow the network that they came from.
        options: The method, and the seed.

    Raises:
        OptionError: If there is nothing to trace the network with, or it cannot be traced.
    """
    inputs = _inputs(sides, options.seed)
    first, *others = sides.all
    for side in others:
        _, found = align(
            sides.network,
            _own(sides, heads, first),
            _own(sides, heads, side),
            method=options.align,
            inputs=inputs,
            seed=options.seed,
        )
        side.alignment = found
        side.w = found.permute(side.w)
        what = "the same function"
        if heads.layer is not None:  # the others' rows are not permuted with it
            what += " on its own outputs"
        sides.notes.append(
            f"{side.name} was aligned with {first.name}: a permutation of its units, {what}"
        )
    if heads.layer is not None:
        _exchange_rows(sides, heads.layer)
    for side in sides:
        _carry_over(sides, side)


def _own(sides: Sides, heads: Heads, side: Side) -> Tensor:  # (n,)
    """Return a network's weights with zeros for the classes of others.

    Those rows are the same in all networks as they come, and would hold every unit in its place.
    """
    if heads.layer is None:
        return side.w
    w = side.w.clone()
    for name, tensor in sides.network.unravel(w).items():
        if name.rpartition(".")[0] == heads.layer:
            own = tensor[side.rows].clone()
            tensor.zero_()
            tensor[side.rows] = own
    return w


def _exchange_rows(sides: Sides, layer: str) -> None:
    """Give every network the others' rows of the head in the order of their units by now."""
    name = f"{layer}.weight"
    learned = {s.name: sides.network.unravel(s.w)[name][s.rows].clone() for s in sides}
    for side in sides:
        matrix = sides.network.unravel(side.w)[name]
        for other in sides:
            matrix[other.rows] = learned[other.name]


def _carry_over(sides: Sides, side: Side) -> None:
    """Bring a side's checkpoint and sketch to its weights as they are now."""
    tensors = sides.network.unravel(side.w)
    weights = {k: tensors.get(k, v).to(v).clone() for k, v in side.checkpoint.weights.items()}
    side.checkpoint = replace(side.checkpoint, weights=weights, sketch={})
    if side.sketch is not None and side.alignment is not None:
        side.sketch = Sketch(permuted_metric(side.sketch.metric, side.alignment), side.sketch.meta)


def _inputs(sides: Sides, seed: int) -> Inputs:
    """Return inputs of all manifolds of one shape, each normalised in its own way.

    Raises:
        OptionError: If there are none.
    """
    given = [s.manifold for s in sides if s.manifold is not None]
    if not given:
        given = [s.task.train.inputs for s in sides if s.task is not None]
    if not given:
        raise OptionError(
            "expected inputs of a task to align networks with, got none; name one with `inputs`, "
            "or leave out `align`"
        )
    alike = [x for x in given if x.shape == given[0].shape]
    samples = [x.sample(_INPUTS // len(alike), seed).batch(slice(None)) for x in alike]
    return as_they_are(concat(samples), given[0].device)
