"""Surface of the functional change in the plane of a sparsification's paths.

As in figure 2E of arXiv 2012.09605, the plane is spanned by the first two principal directions of
all stored points relative to the dense network. Its share is the part of the points' squared
distances from the dense network that lies in it. The height of the surface is the functional change
from the dense network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.metrics import functional_change
from geomerge.networks.network import Network
from geomerge.pruning.flops import count
from geomerge.pruning.sparsify import SparsifyResult

__all__ = [
    "Surface",
    "SurfacePlane",
    "Track",
    "plane_of",
    "surface_of",
]

INPUTS = 128  # held-out inputs on which each point of the surface is measured
SIDES = (9, 31)  # smallest and largest number of points along a side of the grid
_FLOPS = 1e12  # approximate FLOPs of the whole grid: a quarter of a minute on one core
_HELD = 2**27  # entries of weight differences in memory at a time: half a gigabyte
_MARGIN = 0.15  # margin around the paths, as a share of the longer side
_NARROWEST = 0.6  # smallest ratio of the shorter side to the longer one


@dataclass(frozen=True)
class Track:
    """A path projected into the plane.

    Attributes:
        name: Name of the walk.
        chosen: Whether the walk is the chosen one.
        length: Length of the walk in the metric.
        points: Coordinates of the stored points, shape (P, 2); the start is the origin.
        change: Functional change at the end of the path, not at its projection.
    """

    name: str
    chosen: bool
    length: float
    points: Tensor
    change: float


@dataclass(frozen=True)
class Surface:
    """Functional change from the dense network on a grid in a plane of weights.

    Attributes:
        xs: Coordinates along the first direction, shape (columns,); one of them is 0.
        ys: Coordinates along the second direction, shape (rows,); one of them is 0.
        heights: Functional change at each point of the grid, shape (rows, columns).
        tracks: Projected paths, the chosen one first.
        share: Share of the stored points' squared distances from the start within the plane.
        inputs: Number of held-out inputs on which the change is measured.
    """

    xs: Tensor
    ys: Tensor
    heights: Tensor
    tracks: list[Track]
    share: float
    inputs: int


@dataclass(frozen=True)
class SurfacePlane:
    """Plane of the first two principal directions of differences.

    Attributes:
        directions: Orthonormal vectors, shape (2, n); zero vectors if the differences span less
            than a plane.
        coordinates: Coordinates of each difference, shape (P, 2).
        share: Share of the sum of squared lengths within the plane.
    """

    directions: Tensor
    coordinates: Tensor
    share: float


def surface_of(result: SparsifyResult) -> Surface:
    """Measure the surface in the plane of a sparsification's walks.

    Args:
        result: Sparsification.

    Returns:
        Surface with the projected paths.
    """
    problem, network, start = result.problem, result.problem.network, result.problem.weights
    walks = [result.chosen, *(walk for walk in result.walks if walk is not result.chosen)]
    paths = result.paths
    stops = [(path, t) for path in paths for t in path.ts]
    trained = network.n_parameters

    def difference(k: int) -> Tensor:  # (n,)
        path, t = stops[k]
        return path.at(t) - start

    plane = plane_of(len(stops), difference, trained)
    held_out = problem.task.select.inputs.sample(INPUTS, problem.seed)
    x = held_out.batch(slice(None))
    before = network.logits(start, x)

    def change(w: Tensor) -> float:
        return functional_change(before, network.logits(w, x), problem.output)

    ends = [change(path.at(1.0)) for path in paths]
    flops = count(network.shared_module(start), x).flops * len(held_out)
    xs, ys = _grid(plane.coordinates, _side(flops))
    heights = torch.empty(len(ys), len(xs), dtype=torch.float64)
    for i, y in enumerate(ys):
        for j, along in enumerate(xs):
            w = start + float(along) * plane.directions[0] + float(y) * plane.directions[1]
            heights[i, j] = change(_possible(network, w))
    parts = plane.coordinates.split([len(path.ts) for path in paths])
    tracks = [
        Track(walk.name, walk is result.chosen, walk.leg.length, points, end)
        for walk, points, end in zip(walks, parts, ends, strict=True)
    ]
    return Surface(xs, ys, heights, tracks, plane.share, len(held_out))


def plane_of(
    number: int, difference: Callable[[int], Tensor], trained: int | None = None
) -> SurfacePlane:
    """Return the plane through the origin closest to given differences.

    Args:
        number: Number of differences P.
        difference: Function that reads a difference, shape (n,), by its index. It is called
            repeatedly, so that few differences are in memory at a time.
        trained: Number of leading entries used for distances; None uses all. The remaining entries,
            running statistics, are combined with the same coefficients.

    Returns:
        Plane. The sign of each direction makes the last nonzero coordinate along it positive.
    """
    n = len(difference(0))
    held = max(1, _HELD // n)
    gram = torch.zeros(number, number, dtype=torch.float64)
    for first in range(0, number, held):
        last = min(first + held, number)
        block = torch.stack([difference(k)[:trained] for k in range(first, last)])
        for k in range(first, number):
            d = block[k - first] if k < last else difference(k)[:trained]
            gram[k, first:last] = block @ d  # eigh reads only the lower triangle
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:2].clamp(min=0), vectors.flip(1)[:, :2]
    total = float(gram.trace())
    spread = values > 1e-12 * total
    coordinates = vectors * torch.where(spread, values, 0.0).sqrt()
    weights = torch.where(spread, vectors / values.sqrt().clamp(min=1e-300), 0.0)
    for axis in range(coordinates.shape[1]):
        far = coordinates[:, axis].abs() > 1e-3 * coordinates[:, axis].abs().max()
        if far.any() and coordinates[far, axis][-1] < 0:
            coordinates[:, axis] *= -1
            weights[:, axis] *= -1
    directions = torch.zeros(2, n, dtype=difference(0).dtype, device=difference(0).device)
    for k in range(number):
        d = difference(k)
        for direction, weight in zip(directions, weights[k].tolist(), strict=True):
            direction.add_(d, alpha=weight)
    share = float(values.sum()) / total if total > 0 else 1.0
    return SurfacePlane(directions, coordinates, share)


def _side(flops: float) -> int:
    """Return the odd number of points along a side of the grid, from the cost of one point."""
    fewest, most = SIDES
    affordable = int((_FLOPS / max(flops, 1.0)) ** 0.5)
    return min(max(affordable - 1 + affordable % 2, fewest), most)


def _grid(
    coordinates: Tensor,  # (P, 2)
    side: int,
) -> tuple[Tensor, Tensor]:
    """Return the coordinates of a grid that encloses points and contains the origin."""
    low, high = coordinates.amin(dim=0), coordinates.amax(dim=0)
    longest = float((high - low).max()) or 1.0
    wide = (high - low).clamp(min=_NARROWEST * longest) + 2 * _MARGIN * longest
    step = wide / (side - 1)
    first = (((low + high - wide) / 2) / step).round()
    xs, ys = (step[k] * (first[k] + torch.arange(side)) for k in range(2))
    return xs, ys


def _possible(
    network: Network,
    w: Tensor,  # (n,)
) -> Tensor:  # (n,)
    """Return weights with nonnegative variances, which extrapolation can violate."""
    for name, place in network.slices.items():
        if name.endswith("running_var"):
            w[place] = w[place].clamp(min=0)
    return w
