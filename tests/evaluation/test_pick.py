from __future__ import annotations

import pytest

from geomerge.errors import OptionError
from geomerge.evaluation.pick import PICKS, Score, parse_pick
from geomerge.evaluation.search import FINAL, search, shortest_of_best


def score(a: float, b: float | None = None, toward_b: float = 0.0) -> Score:
    return Score({"a": a, "b": b}, {}, {"a": toward_b, "b": 1 - toward_b})


@pytest.mark.parametrize("count", [1, 2, 5, 64, 301])
@pytest.mark.parametrize("cross", [0.0, 0.21, 0.5, 0.97, 1.0])
def test_search_finds_where_two_curves_cross(count: int, cross: float) -> None:
    rule = parse_pick("max-min", {"a": 1.0, "b": 1.0})

    def measure(i: int) -> Score:
        t = i / max(count - 1, 1)
        return score(1 - max(0.0, t - cross), 1 - max(0.0, cross - t))

    best, scores = search(range(count), measure, rule)
    assert abs(best / max(count - 1, 1) - cross) <= 1 / max(count - 1, 1) or count == 1
    assert len(scores) <= min(count, 30)


def test_few_points_are_measured_exactly_where_a_rough_search_goes_first() -> None:
    rule = parse_pick("max-min", {"a": 1.0, "b": 1.0})
    exact: list[int] = []

    def rough(i: int) -> Score:
        return score(1 - abs(i - 40) / 100, 1.0)

    def measure(i: int) -> Score:
        exact.append(i)
        return score(1 - abs(i - 41) / 100, 1.0)

    best, scores = search(range(64), measure, rule, rough)
    assert best == 41
    assert FINAL <= len(exact) <= FINAL + 2
    assert len(scores) > len(exact)


def test_a_rough_search_that_is_misled_is_followed_by_exact_measurements() -> None:
    floor = parse_pick("a>=0.8", {"a": 1.0, "b": 1.0})

    def at(i: int, more: float) -> Score:
        return score(0.95 - 0.004 * i + more, i / 64)

    found = [search(range(64), lambda i: at(i, 0.0), floor, rough)[0] for rough in (
        None, lambda i: at(i, 0.02), lambda i: at(i, -0.02))]  # fmt: skip
    assert found == [37, 37, 37]


def test_balanced_looks_at_drops_and_not_at_accuracies() -> None:
    rule = parse_pick("balanced", {"a": 0.99, "b": 0.89})
    assert rule.value(score(0.96, 0.87)) > rule.value(score(0.95, 0.88))
    assert rule.value(score(0.99, 0.89)) == 0


def test_a_floor_takes_the_best_of_the_other_or_the_nearest_to_it() -> None:
    rule = parse_pick("a >= 0.80", {"a": 0.99, "b": None})
    measured = [score(0.9, 0.3), score(0.85, 0.5), score(0.7, 0.9)]
    assert max(measured, key=rule.rank) is measured[1]
    blind = [score(0.9, toward_b=0.3), score(0.85, toward_b=0.5), score(0.7, toward_b=0.9)]
    assert max(blind, key=rule.rank) is blind[1]
    low = [score(0.5, toward_b=0.9), score(0.7, toward_b=0.1)]
    assert max(low, key=rule.rank) is low[1]


def test_equal_drift_balances_functional_changes() -> None:
    rule = parse_pick("equal-drift", {"a": None, "b": None})
    points = [Score(drift={"a": x, "b": 1 - x}) for x in (0.1, 0.45, 0.8)]
    assert max(points, key=rule.value) is points[1]


def test_of_walks_that_end_nearly_as_well_the_shortest_is_taken() -> None:
    walks = [(0.900, 3.0), (0.896, 1.0), (0.894, 0.5), (0.897, 1.0)]  # values and lengths

    def taken(*margin: float) -> tuple[float, float]:
        return shortest_of_best(walks, lambda w: w[0], lambda w: w[1], *margin)

    assert taken() is walks[1]
    assert taken(0.0) is walks[0]
    assert taken(0.1) is walks[2]


@pytest.mark.parametrize("text", ["maxmin", "a>=80", "c>=0.5", "a>0.5", ""])
def test_unknown_rules_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="unknown pick"):
        parse_pick(text, {"a": 1.0, "b": 1.0})


def test_rules_look_at_every_network() -> None:
    experts = {"a": 0.99, "b": 0.89, "c": 0.98}
    points = [
        Score({"a": 0.97, "b": 0.80, "c": 0.97}),
        Score({"a": 0.95, "b": 0.87, "c": 0.93}),
        Score({"a": 0.90, "b": 0.88, "c": 0.90}),
    ]
    best = {
        text: max(range(3), key=lambda i: parse_pick(text, experts).rank(points[i]))
        for text in ("max-min", "balanced", "c>=0.95")
    }
    assert best == {"max-min": 2, "balanced": 1, "c>=0.95": 0}


def test_points_within_the_budgets_come_before_all_others() -> None:
    rule = parse_pick("a>=0.80", {"a": 0.99, "b": 0.99})
    points = [
        Score({"a": 0.9, "b": 0.9}, feasible=False),
        Score({"a": 0.7, "b": 0.9}),
        Score({"a": 0.8, "b": 0.1}),
    ]
    assert sorted(points, key=rule.rank) == points
    assert [rule.meets(point) for point in points] == [True, False, True]


def test_a_registered_rule_is_parsed_by_its_name() -> None:
    assert {"max-min", "balanced", "equal-drift"} <= set(PICKS)
    for name in PICKS:
        rule = parse_pick(name, {"a": 0.9, "b": 0.8})
        assert rule.name == name
        assert rule.uses_labels == (rule.needs == "accuracies")
