"""Search for the best point of a walk, and for the best of several walks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from geomerge.evaluation.pick import MARGIN, PickRule, Score

__all__ = ["COARSE", "FINAL", "first_of_best", "search", "shortest_of_best"]

Walk = TypeVar("Walk")

COARSE = 12  # points measured first; then those around the best
FINAL = 4  # points measured exactly, at least, where a search on rough measurements goes first


def first_of_best(scores: Mapping[int, Score], rule: PickRule) -> int:
    """Return the best point of a walk, the first of equals.

    Args:
        scores: Scores by the numbers of the points.
        rule: Pick rule that orders the scores.
    """
    return max(sorted(scores), key=lambda point: rule.rank(scores[point]))


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
        rough: Cheaper function of the same, by which the points to be measured are found; None
            measures all points alike.

    Returns:
        The best point, the first of equals, and the scores of all points measured; rough ones of
        those that were measured roughly alone.
    """
    if rough is not None:
        _, seen = search(marks, rough, rule)
        found = _exact(marks, measure, rule, seen)
        return first_of_best(found, rule), dict(sorted({**seen, **found}.items()))
    stride = max(1, len(marks) // COARSE)
    scores = {i: measure(marks[i]) for i in {*range(0, len(marks), stride), len(marks) - 1}}
    while stride > 1:
        best = first_of_best(scores, rule)
        stride = (stride + 1) // 2
        for i in (best - stride, best + stride):
            if 0 <= i < len(marks) and i not in scores:
                scores[i] = measure(marks[i])
    return marks[first_of_best(scores, rule)], {
        marks[i]: score for i, score in sorted(scores.items())
    }


def _exact(
    marks: Sequence[int],
    measure: Callable[[int], Score],
    rule: PickRule,
    seen: Mapping[int, Score],
) -> dict[int, Score]:
    """Return scores of the best of some points and of all around the best of these.

    Args:
        marks: Numbers of all points, in order.
        measure: Function of a point's number that returns its score.
        rule: Pick rule that orders the scores.
        seen: Rough scores of some points. Where the best of these keep no condition that another
            one kept roughly, others are measured as well.
    """
    level = max(rule.level(score) for score in seen.values())
    found: dict[int, Score] = {}
    for mark in sorted(seen, key=lambda mark: rule.rank(seen[mark]), reverse=True):
        if len(found) >= FINAL and any(rule.level(score) >= level for score in found.values()):
            break
        found[mark] = measure(mark)
    while True:  # the best of a part of the examples need not be the best
        at = marks.index(first_of_best(found, rule))
        unknown = [mark for mark in marks[max(at - 1, 0) : at + 2] if mark not in found]
        if not unknown:
            return found
        found |= {mark: measure(mark) for mark in unknown}


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
