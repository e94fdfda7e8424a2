from __future__ import annotations

import pytest

from geomerge.crossover import Score, parse_pick, search
from geomerge.errors import OptionError


@pytest.mark.parametrize("count", [1, 2, 5, 64, 301])
@pytest.mark.parametrize("cross", [0.0, 0.21, 0.5, 0.97, 1.0])
def test_search_finds_where_two_curves_cross(count: int, cross: float) -> None:
    rule = parse_pick("max-min", 1.0, 1.0)

    def measure(i: int) -> Score:
        t = i / max(count - 1, 1)
        return Score(a=1 - max(0.0, t - cross), b=1 - max(0.0, cross - t))

    best, scores = search(range(count), measure, rule)
    assert abs(best / max(count - 1, 1) - cross) <= 1 / max(count - 1, 1) or count == 1
    assert len(scores) <= min(count, 30)


def test_balanced_looks_at_drops_and_not_at_accuracies() -> None:
    rule = parse_pick("balanced", 0.99, 0.89)
    assert rule.value(Score(a=0.96, b=0.87)) > rule.value(Score(a=0.95, b=0.88))
    assert rule.value(Score(a=0.99, b=0.89)) == 0


def test_a_floor_takes_the_best_of_the_other_or_the_nearest_to_it() -> None:
    rule = parse_pick("a >= 0.80", 0.99, None)
    measured = [Score(a=0.9, b=0.3), Score(a=0.85, b=0.5), Score(a=0.7, b=0.9)]
    assert max(measured, key=rule.value) is measured[1]
    blind = [Score(a=0.9, toward_b=0.3), Score(a=0.85, toward_b=0.5), Score(a=0.7, toward_b=0.9)]
    assert max(blind, key=rule.value) is blind[1]
    low = [Score(a=0.5, toward_b=0.9), Score(a=0.7, toward_b=0.1)]
    assert max(low, key=rule.value) is low[1]


def test_equal_drift_balances_functional_changes() -> None:
    rule = parse_pick("equal-drift", None, None)
    points = [Score(drift_a=x, drift_b=1 - x) for x in (0.1, 0.45, 0.8)]
    assert max(points, key=rule.value) is points[1]


@pytest.mark.parametrize("text", ["maxmin", "a>=80", "c>=0.5", "a>0.5", ""])
def test_unknown_rules_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="unknown pick"):
        parse_pick(text, 1.0, 1.0)
