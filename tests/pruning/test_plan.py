from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomerge.errors import OptionError
from geomerge.pruning.plan import (
    PlanStep,
    Wanted,
    check_plan,
    resolve,
)
from geomerge.pruning.units import FoundUnits, Units

TIED = Units("conv1", ("conv1", "conv2"), 8, ())
HIDDEN = Units("hidden", ("hidden",), 4, ())
UNITS = FoundUnits(
    {"conv1": TIED, "conv2": TIED, "hidden": HIDDEN}, {"head": "they are the network's outputs"}
)


def test_what_is_meant() -> None:
    there = [1, 3, 5, 7, 9]
    assert resolve(2, there) == 2
    assert resolve(0.6, there) == 3
    assert resolve((3, 9), there) == (3, 9)
    with pytest.raises(OptionError, match="unit 2 is not among"):
        resolve((2, 3), there)
    with pytest.raises(OptionError, match="at most 5 units, got 6"):
        resolve(6, there)


def test_a_plan_that_can_be_carried_out() -> None:
    check_plan(
        [
            PlanStep("out", {"conv1": 5, "hidden": (0, 1)}),
            PlanStep("swap", {"conv2": 0.34, "hidden": (2,)}, {"conv2": 5, "hidden": 0.5}),
            PlanStep("back", {}, {"conv1": 1.0, "hidden": 1.0}),
            PlanStep("known again", {"conv1": (0, 7)}, {}),
        ],
        UNITS,
        {},
    )


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "the plan has no steps"),
        ([PlanStep("a", {"conv1": 1}), PlanStep("a", {"hidden": 1})], "two steps are named 'a'"),
        ([PlanStep("a")], "step 'a' does nothing"),
        ([PlanStep("a", {"conv3": 1})], "step 'a': no layer 'conv3' with units"),
        ([PlanStep("a", {"conv3": 1})], "did you mean"),
        ([PlanStep("a", {"head": 1})], "they are the network's outputs"),
        ([PlanStep("a", {"conv1": 1, "conv2": 1})], "conv2 is tied to another layer"),
        ([PlanStep("a", {"hidden": 3})], "hidden would be empty: 3 units go and 3 of 4 are there"),
        ([PlanStep("a", {"hidden": 1.0})], "hidden would be empty"),
        ([PlanStep("a", {"hidden": (0, 1, 3)})], "hidden would be empty"),
        ([PlanStep("a", {"hidden": (2,)})], "unit 2 of layer hidden is gone already"),
        ([PlanStep("a", {"hidden": (4,)})], "expected units of layer hidden from 0 to 3, got 4"),
        ([PlanStep("a", {"hidden": ()})], "the list of units of layer hidden is empty"),
        ([PlanStep("a", {}, {"hidden": (1,)})], "unit 1 of layer hidden is there"),
        ([PlanStep("a", {}, {"hidden": 2})], "2 units of layer hidden cannot be restored, 1"),
        ([PlanStep("a", {"conv1": 2}, {"conv1": 1})], "1 units of layer conv1 cannot be restored"),
        ([PlanStep("a", {"conv1": 0})], "expected at least one unit of layer conv1, got 0"),
        ([PlanStep("a", {"conv1": 1.5})], r"expected a share of layer conv1 in (0, 1], got 1.5"),
        ([PlanStep("a", {"conv1": 0.0})], r"in (0, 1], got 0"),
        ([PlanStep("a", {"conv1": float("nan")})], r"in (0, 1], got nan"),
        ([PlanStep("a", {"conv1": 0.01})], "0.01 of the 8 units of layer conv1 that are there"),
        ([PlanStep("a", {}, {"conv1": 1.0})], "of the 0 units of layer conv1 that are gone"),
        (
            [PlanStep("a", {"conv1": 3}), PlanStep("b", {"conv2": (1,)}, {"conv2": (1,)})],
            "step 'b': unit 1 of layer conv1 is removed and restored",
        ),
        (
            [PlanStep("a", {"conv1": 3}), PlanStep("b", {}, {"conv1": 3}),
             PlanStep("c", {}, {"conv1": (1,)})],
            "step 'c': unit 1 of layer conv1 is there",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_cannot(steps: list[PlanStep], message: str) -> None:
    with pytest.raises(OptionError) as error:
        check_plan(steps, UNITS, {"hidden": [2]})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def carry_out(steps: Sequence[PlanStep], gone: set[int], pick: st.DataObject | None) -> bool:
    """Carry a plan for the layer conv1 out with real units; whether that went well."""
    for step in steps:
        there = sorted(set(range(8)) - gone)
        moved: list[set[int]] = []
        for wanted, available in ((step.remove, there), (step.restore, sorted(gone))):
            value = wanted.get("conv1", ())
            try:
                found = resolve(value, available)
            except OptionError:
                return False
            if isinstance(found, int):
                assert pick is not None
                found = tuple(pick.draw(st.permutations(available))[:found])
            if value != () and not found:
                return False
            moved.append(set(found))
        if len(moved[0]) == len(there):
            return False
        gone = (gone - moved[1]) | moved[0]
    return True


LISTS = st.sets(st.integers(0, 7), max_size=5).map(lambda found: tuple(sorted(found)))
COUNTS = st.integers(1, 6) | st.floats(0.05, 1.0)


def plans(wanted: st.SearchStrategy[Wanted]) -> st.SearchStrategy[list[PlanStep]]:
    layer = st.dictionaries(st.just("conv1"), wanted.filter(lambda found: found != ()))
    pairs = st.tuples(layer, layer).filter(lambda pair: bool(pair[0] or pair[1]))
    return st.lists(pairs, min_size=1, max_size=4).map(
        lambda found: [PlanStep(str(k), *pair) for k, pair in enumerate(found)]
    )


def passes(steps: list[PlanStep], gone: set[int]) -> bool:
    try:
        check_plan(steps, UNITS, {"conv2": sorted(gone)})
    except OptionError:
        return False
    return True


@given(plans(LISTS), st.sets(st.integers(0, 7), max_size=6))
def test_a_plan_of_lists_passes_where_it_can_be_carried_out(
    steps: list[PlanStep], gone: set[int]
) -> None:
    assert passes(steps, gone) == carry_out(steps, gone, None)


@given(plans(COUNTS), st.sets(st.integers(0, 7), max_size=6), st.data())
def test_a_plan_of_counts_passes_whatever_they_come_to(
    steps: list[PlanStep], gone: set[int], data: st.DataObject
) -> None:
    assert passes(steps, gone) == carry_out(steps, gone, data)


@given(plans(LISTS | COUNTS), st.sets(st.integers(0, 7), max_size=6), st.data())
def test_nothing_that_can_be_carried_out_is_refused(
    steps: list[PlanStep], gone: set[int], data: st.DataObject
) -> None:
    assert passes(steps, gone) or not carry_out(steps, gone, data)
