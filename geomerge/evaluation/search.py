"""Search for the best point of a walk, and for the best of several walks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from geomerge.evaluation.pick import MARGIN, PickRule, Score

__all__ = ["COARSE", "FINAL", "search", "shortest_of_best"]

Walk = TypeVar("Walk")

COARSE = 12  # points measured first; then those around the best
FINAL = 4  # points measured exactly where the search is on rough measurements


def search(
    marks: Sequence[int],
    measure: Callable[[int], Score],
    rule: PickRule,
    rough: Callable[[int], Score] | None = None,
) -> tuple[int, dict[int, Score]]:
    """Find the best of a sequence of points: a coarse search, then a finer one around the best.

    Args:
        marks: Numbers of the points, in order.
        measure: Function of a point's number that returns its score.
        rule: Pick rule that orders the scores.
        rough: Cheaper function of the same, by which four points are found of which the best is
            taken; None measures all points alike.

    Returns:
        The best point, the first of equals, and the scores of all points measured.
    """
    if rough is not None:
        _, seen = search(marks, rough, rule)
        leading = sorted(seen, key=lambda mark: rule.rank(seen[mark]), reverse=True)[:FINAL]
        best, found = search(sorted(leading), measure, rule)
        return best, dict(sorted({**seen, **found}.items()))
    stride = max(1, len(marks) // COARSE)
    scores = {i: measure(marks[i]) for i in {*range(0, len(marks), stride), len(marks) - 1}}
    while stride > 1:
        best = max(sorted(scores), key=lambda i: rule.rank(scores[i]))
        stride = (stride + 1) // 2
        for i in (best - stride, best + stride):
            if 0 <= i < len(marks) and i not in scores:
                scores[i] = measure(marks[i])
    best = max(sorted(scores), key=lambda i: rule.rank(scores[i]))
    return marks[best], {marks[i]: score for i, score in sorted(scores.items())}


def shortest_of_best(
    walks: Sequence[Walk],
    value: Callable[[Walk], float],
    length: Callable[[Walk], float],
    margin: float = MARGIN,
) -> Walk:
    """Return the shortest walk of those within a margin of the best value.

    Args:
        walks: Walks to choose from.
        value: Value of a walk; the higher the better.
        length: Length of a walk's path.
        margin: Largest difference from the best value.
    """
    best = max(map(value, walks))
    return min((walk for walk in walks if value(walk) >= best - margin), key=length)
