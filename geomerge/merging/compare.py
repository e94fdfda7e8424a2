"""The rows that stand beside every merge: both networks, the straight line, the Euclidean walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from geomerge.baselines import straight_line
from geomerge.crossover import Score, accuracy, search
from geomerge.merging.candidates import Scorer, select_accuracies, toward_b
from geomerge.merging.merge import Merge
from geomerge.merging.monitor import Monitor, Progress
from geomerge.merging.options import MergeOptions
from geomerge.merging.walks import Walker
from geomerge.metric import EuclideanMetric
from geomerge.path import record_leg

__all__ = ["CurvePoint", "Row", "comparison", "curves"]


@dataclass(frozen=True)
class Row:
    """One line of the table, accuracies in [0, 1], None where a task is not there.

    Attributes:
        name: What it is.
        select: Accuracies on the selection splits of a's and b's task.
        test: Accuracies on their test splits.
    """

    name: str
    select: tuple[float | None, float | None]
    test: tuple[float | None, float | None]


@dataclass(frozen=True)
class CurvePoint:
    """One point of the path as it is drawn, measured on the selection splits.

    Attributes:
        t: Where on the path.
        a: Accuracy on a's task.
        b: Accuracy on b's task.
        distance: |w - w_b|.
    """

    t: float
    a: float | None
    b: float | None
    distance: float


def comparison(
    merged: Merge,
    options: MergeOptions,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Row]:
    """Measure the merge and what stands beside it; every point is picked by the merge's own rule.

    Args:
        merged: The merge.
        options: Its options.
        on_progress: Called after each step of the Euclidean walk.

    Returns:
        Rows: a, b, straight line, Euclidean walk (where it is not the straight line), crossover.
    """
    sides, plan = merged.sides, merged.plan
    rows = [_row(merged, "a", sides.a.w), _row(merged, "b", sides.b.w)]
    line = straight_line(sides.a.w, sides.b.w)
    rows.append(
        _picked(
            merged,
            options,
            "straight line",
            len(line),
            line.__getitem__,
            lambda i: i / (len(line) - 1),
        )
    )
    if plan.preset == "sketch" and options.metric != "euclidean":
        walker = Walker(sides.network, plan.goal, options)
        walk, steps = walker.learn(plan.start, EuclideanMetric(), 0.0)
        with TemporaryDirectory() as folder:
            leg = record_leg(
                Path(folder),
                plan.start.name,
                plan.start.w,
                Monitor(sides, on_progress).watch(walk, "Euclidean walk", steps),
                options.points,
            )
            marks = [step for step, _ in leg.marks]
            rows.append(
                _picked(
                    merged,
                    options,
                    "Euclidean walk",
                    len(marks),
                    lambda i: leg.weights(marks[i]),
                    lambda i: toward_b(leg, marks[i]),
                )
            )
    rows.append(_row(merged, "crossover", merged.w))
    return rows


def curves(merged: Merge, points: int = 33) -> list[CurvePoint]:
    """Measure the path on the selection splits at some of its stored points.

    Args:
        merged: The merge.
        points: About how many; ends and crossover are always among them.
    """
    ts = merged.path.ts
    stride = max(1, len(ts) // points)
    sides = merged.sides
    found = []
    for t in sorted({*ts[::stride], merged.t, 1.0}):
        w = merged.path.at(t)
        distance = float((w - sides.b.w).norm())
        found.append(CurvePoint(t, *select_accuracies(sides, w), distance))
    return found


def _picked(
    merged: Merge,
    options: MergeOptions,
    name: str,
    count: int,
    weights: Callable[[int], Tensor],
    nearness: Callable[[int], float],
) -> Row:
    scorer = Scorer(merged.sides, options.output)

    def measure(i: int) -> Score:
        return scorer(weights(i), nearness(i))

    best, _ = search(range(count), measure, merged.rule)
    return _row(merged, name, weights(best))


def _row(
    merged: Merge,
    name: str,
    w: Tensor,  # (n,)
) -> Row:
    sides = merged.sides
    one, two = (
        accuracy(sides.network, w, s.task.test) if s.task else None for s in (sides.a, sides.b)
    )
    return Row(name, select_accuracies(sides, w), (one, two))
