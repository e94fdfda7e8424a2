"""Loss plane: losses in the plane through both ends of a path and its crossover.

Garipov et al. 2018, figure 1, with a path between two tasks projected onto the plane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.data import Split
from geomerge.evaluation.drift import LARGE
from geomerge.evaluation.measures import mean_loss
from geomerge.expert import Expert
from geomerge.merging.result import MergeResult
from geomerge.weight_space import WeightSpace

__all__ = [
    "EXAMPLES",
    "LossPlane",
    "grid_points",
    "plane_of",
    "spanned",
]

_GRID = 15  # points along each axis
_COARSE_GRID = 9  # of large networks, and where each point's running statistics must be measured
EXAMPLES = 200  # examples of each selection split
_MARGIN = 0.25  # around the three networks, as a share of their extent
_PART = 2**20  # weights of which double precision is held at a time
_FLAT = 1e-4  # share of the ends' distance; a crossover nearer to their line spans no plane


@dataclass(frozen=True)
class LossPlane:
    """Plane with the losses on a grid.

    Attributes:
        xs: Columns of the grid, in the distance of weights along the line between the ends.
        ys: Rows of the grid, in the same unit, away from that line toward the crossover.
        losses: Mean cross-entropy in nats by network, a row of numbers for each of ``ys``; None
            where it is not finite.
        marks: Places of the networks and the crossover: x, y.
        path: Points of the path projected onto the plane: t, x, y and their distance from it.
        examples: Number of examples of each selection split that losses were measured on.
    """

    xs: list[float]
    ys: list[float]
    losses: Mapping[str, list[list[float | None]]]
    marks: Mapping[str, list[float]]
    path: list[dict[str, float]]
    examples: int


def grid_points(space: WeightSpace) -> int:
    """Return the number of points of the grid along each axis."""
    return _COARSE_GRID if space.bn == "re-estimate" or space.network.n >= LARGE else _GRID


def plane_of(merged: MergeResult) -> LossPlane | None:
    """Measure the plane through a merge's first network, its last one and the crossover.

    Args:
        merged: The merge.

    Returns:
        The plane; None if the three lie on a line, or no network has a task.
    """
    space, path = merged.space, merged.path
    known = [expert for expert in space if expert.task is not None]
    if not known:
        return None
    start = path.at(0)
    axes = spanned(path.at(1) - start, merged.w - start)
    if axes is None:
        return None

    def place(w: Tensor) -> list[float]:
        found: list[float] = (axes @ (w - start)).tolist()
        return found

    marks = {expert.name: place(expert.weights) for expert in space}
    marks["crossover"] = place(merged.w)
    count = grid_points(space)
    xs, ys = (_spread([mark[k] for mark in marks.values()], count) for k in (0, 1))
    few = {e.name: e.task.select.first(EXAMPLES) for e in known if e.task is not None}
    examples = min(len(split.labels) for split in few.values())  # as many of each
    losses: dict[str, list[list[float | None]]] = {e.name: [[] for _ in ys] for e in known}
    for row, y in enumerate(ys):
        for x in xs:
            # Running statistics of its own: those between two networks fit neither.
            w = space.settle(start + x * axes[0] + y * axes[1], EXAMPLES)
            for expert in known:
                found = _loss(expert, w, few[expert.name].first(examples))
                losses[expert.name][row].append(found)
    track = []
    for t in path.ts:
        w = path.at(t)
        x, y = place(w)
        off = float((w - start - x * axes[0] - y * axes[1]).norm())
        track.append({"t": t, "x": x, "y": y, "off": off})
    return LossPlane(xs, ys, losses, marks, track, examples)


def spanned(
    line: Tensor,  # (n,)
    aside: Tensor,  # (n,)
) -> Tensor | None:  # (2, n)
    """Return two orthonormal directions that span both, None if they are (nearly) one.

    Sums are in double precision: of large networks the rounding of singles alone would span a
    plane.
    """
    squared, other = _product(line, line), aside.clone()
    if not squared > 0:
        return None
    for _ in range(2):  # once more for what the first subtraction rounded
        share = _product(other, line) / squared
        for part, along in zip(other.split(_PART), line.split(_PART), strict=True):
            part.copy_(part.double() - share * along.double())
    rest = _product(other, other)
    if rest < _FLAT**2 * squared:
        return None
    return torch.stack([line / squared**0.5, other.div_(rest**0.5)])


def _product(
    u: Tensor,  # (n,)
    v: Tensor,  # (n,)
) -> float:
    """Return the inner product in double precision."""
    pairs = zip(u.split(_PART), v.split(_PART), strict=True)
    return sum(float(p.double() @ q.double()) for p, q in pairs)


def _spread(values: list[float], count: int) -> list[float]:
    low, high = min(values), max(values)
    margin = _MARGIN * (high - low)
    return torch.linspace(low - margin, high + margin, count, dtype=torch.float64).tolist()


def _loss(expert: Expert, w: Tensor, split: Split) -> float | None:
    loss = mean_loss(lambda x: expert.network.logits(w, x).double(), split)
    return loss if loss < float("inf") else None
