"""The paths of a sparsification on the loss surface: figure 2E of arXiv 2012.09605.

The plane is that of the two principal directions of all stored points, taken as differences from
where the walks start: it goes through the start, and what its directions hold is a share of the
squared distances from there. The surface over it is the functional change from the dense network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from geomerge.metrics import functional_change
from geomerge.networks.network import Network
from geomerge.paths.path import WeightPath
from geomerge.pruning.flops import count
from geomerge.pruning.sparsify import Sparsified

__all__ = [
    "Surface",
    "SurfacePlane",
    "Track",
    "plane_of",
    "surface_of",
]

INPUTS = 128  # held out, that each point of the surface is measured on
SIDES = (9, 31)  # fewest and most points along a side of the grid
_FLOPS = 1e12  # of the whole grid, about: a quarter of a minute on one core
_HELD = 2**27  # numbers of weight differences held at once, in half a gigabyte
_MARGIN = 0.15  # around the paths, of the longer side
_NARROWEST = 0.6  # the shorter side, of the longer one


@dataclass(frozen=True)
class Track:
    """A path, projected into the plane.

    Attributes:
        name: Of the walk.
        chosen: Whether it is the one that is kept.
        length: In the metric, as it was walked.
        points: Coordinates of its stored points, shape (P, 2); the start is the origin.
        change: Functional change at its end itself, not at the end's projection.
    """

    name: str
    chosen: bool
    length: float
    points: Tensor
    change: float


@dataclass(frozen=True)
class Surface:
    """The functional change from the dense network over a plane of weights.

    Attributes:
        xs: Coordinates along the first direction, shape (columns,); one of them is 0.
        ys: The same along the second, shape (rows,).
        heights: Functional change at each, shape (rows, columns).
        tracks: The paths, the one that is kept first.
        share: Of the squared distances of all stored points from the start, what is in the plane.
        inputs: How many held-out inputs the change is measured on.
    """

    xs: Tensor
    ys: Tensor
    heights: Tensor
    tracks: list[Track]
    share: float
    inputs: int


@dataclass(frozen=True)
class SurfacePlane:
    """Two principal directions of differences.

    Attributes:
        directions: Orthonormal, shape (2, n); zero where the differences span less than a plane.
        coordinates: Of each difference, shape (P, 2).
        share: Of the sum of all squared lengths, what is in the plane.
    """

    directions: Tensor
    coordinates: Tensor
    share: float


def surface_of(found: Sparsified, folder: Path) -> Surface:
    """Measure the surface that the walks of a sparsification went over.

    Args:
        found: The sparsification.
        folder: Where its paths are stored: ``path``, that of the walk that was kept, ``path-2``...

    Returns:
        The surface and the paths on it.
    """
    subject, network = found.subject, found.subject.network
    walks = [found.chosen, *(walk for walk in found.walks if walk is not found.chosen)]
    names = ["path", *(f"path-{k}" for k in range(2, len(walks) + 1))]
    paths = [WeightPath(folder / name, network.device) for name in names]
    stops = [(path, t) for path in paths for t in path.ts]
    trained = network.n_parameters

    def difference(k: int) -> Tensor:  # (n,)
        path, t = stops[k]
        return path.at(t) - subject.w

    plane = plane_of(len(stops), difference, trained)
    held_out = subject.task.select.inputs.sample(INPUTS, subject.options.seed)
    x = held_out.batch(slice(None))
    before = network.logits(subject.w, x)

    def change(w: Tensor) -> float:
        return functional_change(before, network.logits(w, x), subject.options.output)

    ends = [change(path.at(1.0)) for path in paths]
    flops = count(network.shared_module(subject.w), x).flops * len(held_out)
    xs, ys = _grid(plane.coordinates, _side(flops))
    heights = torch.empty(len(ys), len(xs), dtype=torch.float64)
    for i, y in enumerate(ys):
        for j, along in enumerate(xs):
            w = subject.w + float(along) * plane.directions[0] + float(y) * plane.directions[1]
            heights[i, j] = change(_possible(network, w))
    parts = plane.coordinates.split([len(path.ts) for path in paths])
    tracks = [
        Track(walk.name, walk is found.chosen, walk.leg.length, points, end)
        for walk, points, end in zip(walks, parts, ends, strict=True)
    ]
    return Surface(xs, ys, heights, tracks, plane.share, len(held_out))


def plane_of(
    number: int, difference: Callable[[int], Tensor], trained: int | None = None
) -> SurfacePlane:
    """Return the plane through the origin that holds most of some differences.

    Args:
        number: How many differences there are, P.
        difference: Reads one, shape (n,); called more than once, so that few are held at a time.
        trained: Only so many of the first entries count for distances; all of them if None. The
            others, running statistics, go along.

    Returns:
        The plane; the last point with a coordinate along a direction lies on its positive side.
    """
    n = len(difference(0))
    held = max(1, _HELD // n)
    gram = torch.zeros(number, number, dtype=torch.float64)
    for first in range(0, number, held):
        last = min(first + held, number)
        block = torch.stack([difference(k)[:trained] for k in range(first, last)])
        for k in range(first, number):
            d = block[k - first] if k < last else difference(k)[:trained]
            gram[k, first:last] = block @ d  # the lower half, which is all that eigh reads
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
    """Return how many points a side of the grid has, odd, by what one of them costs."""
    fewest, most = SIDES
    affordable = int((_FLOPS / max(flops, 1.0)) ** 0.5)
    return min(max(affordable - 1 + affordable % 2, fewest), most)


def _grid(
    coordinates: Tensor,  # (P, 2)
    side: int,
) -> tuple[Tensor, Tensor]:
    """Return the columns and rows of a grid around points; the origin is one of its points."""
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
    """Return weights without negative variances, which a straight line may come to."""
    for name, place in network.slices.items():
        if name.endswith("running_var"):
            w[place] = w[place].clamp(min=0)
    return w
