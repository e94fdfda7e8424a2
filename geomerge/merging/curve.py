"""Points of a finished path, measured on selection splits: what a report draws along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from geomerge.evaluation.accuracy import right_by_class
from geomerge.merging.merge import Merge
from geomerge.merging.probe import Probe, probe_of
from geomerge.merging.sides import Side
from geomerge.paths.path import WeightPath

__all__ = [
    "POINTS",
    "MergeCurvePoint",
    "curve_of",
    "curves",
]

POINTS = 33  # of a curve, about


@dataclass(frozen=True)
class MergeCurvePoint:
    """One point of the path as it is drawn; all numbers by network.

    Attributes:
        t: Where on the path.
        accuracy: On the selection split of its task, 0 to 1; None where that is not there.
        classes: The same for each class, by the class's own number in its task.
        distance: |w - w_i|.
        predicted: What the network's sketch says of its change of function, d' g d with
            d = w - w_i; None without a sketch.
        measured: Mean |phi(w) - phi(w_i)|^2 on a few of its task's inputs; None without any.
    """

    t: float
    accuracy: Mapping[str, float | None]
    classes: Mapping[str, Mapping[str, float]]
    distance: Mapping[str, float]
    predicted: Mapping[str, float | None]
    measured: Mapping[str, float | None]


def curves(merged: Merge, points: int = POINTS) -> list[MergeCurvePoint]:
    """Measure the path on the selection splits at some of its stored points.

    Args:
        merged: The merge.
        points: Most of them; the crossover and the last end may come on top.
    """
    return curve_of(merged.path, merged.sides.all, merged.options.output, points)


def curve_of(
    path: WeightPath, sides: Sequence[Side], output: str, points: int = POINTS
) -> list[MergeCurvePoint]:
    """Measure a path.

    Args:
        path: The path.
        sides: Its networks, as their tasks see them.
        output: What changes of functions are measured in.
        points: As of :func:`curves`.
    """
    stride = max(1, len(path.ts) // points)
    probes = {s.name: probe_of(s, output) for s in sides}
    ts = sorted({*path.ts[::stride], path.crossover, 1.0})
    return [_point(sides, t, path.at(t), probes) for t in ts]


def _point(
    sides: Sequence[Side], t: float, w: Tensor, probes: Mapping[str, Probe | None]
) -> MergeCurvePoint:
    found = {s.name: _class_accuracies(s, w) for s in sides}
    return MergeCurvePoint(
        t=t,
        accuracy={name: counts[0] if counts else None for name, counts in found.items()},
        classes={name: counts[1] if counts else {} for name, counts in found.items()},
        distance={s.name: float((w - s.w).norm()) for s in sides},
        predicted={s.name: _predicted(s, w) for s in sides},
        measured={s.name: _measured(probes[s.name], s, w) for s in sides},
    )


def _class_accuracies(side: Side, w: Tensor) -> tuple[float, dict[str, float]] | None:
    if side.task is None:
        return None
    right, of = right_by_class(partial(side.network.logits, w), side.task.select)
    shares = {
        str(number - side.offset): int(right[number]) / int(of[number])
        for number in range(side.offset, len(of))
        if int(of[number])
    }
    return int(right.sum()) / int(of.sum()), shares


def _predicted(side: Side, w: Tensor) -> float | None:
    if side.sketch is None:
        return None
    gap = w - side.w
    return side.sketch.metric.inner(gap, gap)


def _measured(probe: Probe | None, side: Side, w: Tensor) -> float | None:
    return None if probe is None else probe(side.w, w)
