"""Curves along a finished path: accuracies, distances and drifts on selection splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from geomerge.data import Split
from geomerge.evaluation.accuracy import right_by_class
from geomerge.evaluation.drift import LARGE, REPORTED, Probe, predicted_change, probe_of
from geomerge.evaluation.measures import score
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.merging.result import MergeResult
from geomerge.networks.network import Network
from geomerge.paths.path import WeightPath

__all__ = [
    "POINTS",
    "MergeCurvePoint",
    "curve_of",
    "curves",
    "examples_drawn",
    "places_of",
]

POINTS = 33  # most points of a curve, beside the crossover and the last end
_DRAWN = 1000  # examples of each selection split at a point of a large network's curve


@dataclass(frozen=True)
class MergeCurvePoint:
    """One point of a path's curve; all numbers by network.

    Attributes:
        t: Place on the path.
        accuracy: Score on the selection split of its task, 0 to 1, on 1000 of its examples for a
            network of more than a million weights; None without a task.
        classes: Accuracy on each class, by the class's own number in its task.
        distance: Distance |w - w_i|.
        predicted: Change of its function predicted by its sketch, d' g d with d = w - w_i; None
            without a sketch.
        measured: Mean |phi(w) - phi(w_i)|^2 on a few of its task's inputs; None without any.
    """

    t: float
    accuracy: Mapping[str, float | None]
    classes: Mapping[str, Mapping[str, float]]
    distance: Mapping[str, float]
    predicted: Mapping[str, float | None]
    measured: Mapping[str, float | None]


def curves(merged: MergeResult, points: int = POINTS) -> list[MergeCurvePoint]:
    """Measure the path on the selection splits at some of its stored points.

    Args:
        merged: The merge.
        points: Most points that are measured; the crossover and the last end may come on top.
    """
    few = examples_drawn(merged.space.network)
    ts = places_of(merged.path, -(-len(merged.path.ts) // points))
    return curve_of(merged.path, merged.space.experts, merged.options.measure.output, ts, few)


def places_of(path: WeightPath, stride: int) -> list[float]:
    """Return the places of a curve's points: every so many of the path, crossover and last end."""
    return sorted({*path.ts[::stride], path.crossover, 1.0})


def examples_drawn(network: Network) -> int | None:
    """Return the number of examples of each selection split at a point of a curve; None is all."""
    return None if network.n < LARGE else _DRAWN


def curve_of(
    path: WeightPath,
    experts: Sequence[Expert],
    output: str,
    ts: Sequence[float],
    examples: int | None = None,
) -> list[MergeCurvePoint]:
    """Measure a path.

    Args:
        path: Path.
        experts: Experts, each with the network of its task's outputs.
        output: Output whose change is measured.
        ts: Places of the points on the path.
        examples: Largest number of examples of each selection split; None takes all.
    """
    probes = {expert.name: probe_of(expert, output, REPORTED) for expert in experts}
    splits = {e.name: e.task.select for e in experts if e.task is not None}
    if examples is not None:
        splits = {name: split.sample(examples) for name, split in splits.items()}
    return [_point(experts, t, path.at(t), probes, splits) for t in ts]


def _point(
    experts: Sequence[Expert],
    t: float,
    w: Tensor,
    probes: Mapping[str, Probe | None],
    splits: Mapping[str, Split],
) -> MergeCurvePoint:
    shares = {e.name: _class_accuracies(e, w, splits.get(e.name)) for e in experts}
    return MergeCurvePoint(
        t=t,
        accuracy={name: known[0] if known else None for name, known in shares.items()},
        classes={name: known[1] if known else {} for name, known in shares.items()},
        distance={e.name: paged.distance(w, e.weights) for e in experts},
        predicted={e.name: predicted_change(e, w) for e in experts},
        measured={e.name: _measured(probes[e.name], e, w) for e in experts},
    )


def _class_accuracies(
    expert: Expert, w: Tensor, split: Split | None
) -> tuple[float, dict[str, float]] | None:
    if expert.task is None or split is None:
        return None
    if split.measure == "loss":
        return score(expert.network, w, split), {}
    right, of = right_by_class(partial(expert.network.logits, w), split)
    first = expert.task.first_class
    shares = {
        str(label - first): int(right[label]) / int(of[label])
        for label in range(first, len(of))
        if int(of[label])
    }
    return int(right.sum()) / int(of.sum()), shares


def _measured(probe: Probe | None, expert: Expert, w: Tensor) -> float | None:
    return None if probe is None else probe(expert.weights, w)
