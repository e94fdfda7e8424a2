"""Points of a walk x the selection splits of tasks -> the network where the tasks balance.

Nothing here ever sees a test split when it picks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from geomerge.errors import OptionError, did_you_mean

__all__ = [
    "PICKS",
    "PickRule",
    "Score",
    "parse_pick",
    "search",
    "shortest_of_best",
]

Walk = TypeVar("Walk")

PICKS = ("max-min", "balanced", "equal-drift")
COARSE = 12  # points measured first; then those around the best
MARGIN = 0.005  # of the walks whose values are this near to the best the shortest is kept


@dataclass(frozen=True)
class Score:
    """What is known of one point; numbers by the name of a network, None where not measured.

    Attributes:
        accuracy: Accuracy on each network's selection split, 0 to 1.
        drift: Functional change from each network, measured on its inputs or predicted by its
            sketch.
        distance: |w - w_i| to each network, as a share of their sum.
        over_budget: Whether the point breaks a budget of the walk.
    """

    accuracy: Mapping[str, float | None] = field(default_factory=dict)
    drift: Mapping[str, float | None] = field(default_factory=dict)
    distance: Mapping[str, float] = field(default_factory=dict)
    over_budget: bool = False


@dataclass(frozen=True)
class PickRule:
    """A rule that gives every point a value; the highest is picked.

    Attributes:
        name: As on the command line.
        value: The value of a point.
        needs: ``"accuracies"`` (of all), ``"drifts"`` or ``"one"`` (the named accuracy).
        margin: Of candidates whose values lie this near to the best the shortest path wins.
    """

    name: str
    value: Callable[[Score], float]
    needs: str
    margin: float = MARGIN


def parse_pick(text: str, experts: Mapping[str, float | None]) -> PickRule:
    """Make the rule that a name stands for.

    Args:
        text: ``max-min`` (largest smallest accuracy), ``balanced`` (smallest worst drop below the
            experts), ``equal-drift`` (smallest largest functional change), or ``"a>=0.80"``: of
            the points that meet it, the one best on the other tasks, or nearest to the other
            networks where those are not measured.
        experts: By name, each network's accuracy on its own selection split, None if unknown.

    Returns:
        The rule.

    Raises:
        OptionError: If the text is none of these.

    Example:
        >>> from geomerge.evaluation.pick import Score, parse_pick
        >>> rule = parse_pick("balanced", {"a": 0.98, "b": 0.90})
        >>> round(rule.value(Score({"a": 0.95, "b": 0.89})), 3)  # a has lost more
        -0.03
    """
    text = text.replace(" ", "")
    if text == "max-min":
        return PickRule(text, lambda s: min(_known(s.accuracy)), "accuracies")
    if text == "balanced":
        return PickRule(
            text,
            lambda s: -max(_known([experts[k]])[0] - _known([v])[0] for k, v in s.accuracy.items()),
            "accuracies",
        )
    if text == "equal-drift":
        return PickRule(text, lambda s: -max(_known(s.drift)), "drifts", 0.0)
    match = re.fullmatch(r"([a-z])>=(0?\.\d+|[01](?:\.0*)?)", text)
    if match is None or match[1] not in experts:
        raise OptionError(
            f"unknown pick {text!r}{did_you_mean(text, PICKS)} (or a floor such as 'a>=0.80')"
        )
    name, floor = match[1], float(match[2])

    def value(s: Score) -> float:
        if name not in s.accuracy:  # an early walk, in which the network does not count yet
            known = [v for v in s.accuracy.values() if v is not None]
            return min(known) if known else -max(s.distance.values())
        (kept,) = _known([s.accuracy[name]])
        if kept < floor:
            return kept - 2  # below every point that meets the floor
        others = [v for k, v in s.accuracy.items() if k != name]
        if any(v is None for v in others):
            return -max(v for k, v in s.distance.items() if k != name)
        return min(_known(others))

    return PickRule(text, value, "one")


def search(
    marks: Sequence[int], measure: Callable[[int], Score], rule: PickRule
) -> tuple[int, dict[int, Score]]:
    """Find the best of a row of points: some spread over all of them first, then near the best.

    Args:
        marks: The points, in order.
        measure: Measures one of them.
        rule: Values a measured point.

    Returns:
        The best point, the first of equals, and all that was measured.
    """
    stride = max(1, len(marks) // COARSE)
    scores = {i: measure(marks[i]) for i in {*range(0, len(marks), stride), len(marks) - 1}}
    while stride > 1:
        best = max(sorted(scores), key=lambda i: rule.value(scores[i]))
        stride = (stride + 1) // 2
        for i in (best - stride, best + stride):
            if 0 <= i < len(marks) and i not in scores:
                scores[i] = measure(marks[i])
    best = max(sorted(scores), key=lambda i: rule.value(scores[i]))
    return marks[best], {marks[i]: score for i, score in sorted(scores.items())}


def shortest_of_best(
    walks: Sequence[Walk],
    value: Callable[[Walk], float],
    length: Callable[[Walk], float],
    margin: float = MARGIN,
) -> Walk:
    """Return the shortest of the walks whose value is nearly the best.

    Args:
        walks: The walks.
        value: Of a walk; the higher the better.
        length: Of its path.
        margin: How near to the best value is near enough.
    """
    best = max(map(value, walks))
    return min((walk for walk in walks if value(walk) >= best - margin), key=length)


def _known(values: Mapping[str, float | None] | Iterable[float | None]) -> list[float]:
    found = list(values.values()) if isinstance(values, Mapping) else list(values)
    known = [v for v in found if v is not None]
    assert len(known) == len(found), "the rule needs a number that was not measured"
    return known
