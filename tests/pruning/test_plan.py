from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomerge.errors import OptionError
from geomerge.pruning.plan import (
    PlanStep,
    Wanted,
    check_plan,
    load_plan,
    parse_removals,
    resolve,
)
from geomerge.pruning.units import FoundUnits, Units

TIED = Units("conv1", ("conv1", "conv2"), 8, ())
HIDDEN = Units("hidden", ("hidden",), 4, ())
UNITS = FoundUnits(
    {"conv1": TIED, "conv2": TIED, "hidden": HIDDEN}, {"head": "they are the network's outputs"}
)

PLAN = """
# a comment
- name: small
  remove: {conv1: 3, hidden: [0, 2-3]}
- name: other
  remove:
    1.10: 0.5
  restore: {conv2: 1.0}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "plan.yaml").write_text(text)
    return folder / "plan.yaml"


def test_a_plan_is_read_as_written(tmp_path: Path) -> None:
    assert load_plan(write(tmp_path, PLAN)) == [
        PlanStep("small", {"conv1": 3, "hidden": (0, 2, 3)}, {}),
        PlanStep("other", {"1.10": 0.5}, {"conv2": 1.0}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- name: a\n  remove: {x: 1, x: 2}", "line 2: 'x' is a key twice"),
        ("- name: a\n- name: b\n  remove: {x: [1, 2", "line 3"),
        ("- name: a\n  ? [1, 2]\n  : 3", "line 2: expected a name before the colon"),
        ("- name: !!python/object:os.system a", "line 1: could not determine a constructor"),
        ("- name: a\n  remove: {x: 2024-13-45}", "not readable as YAML"),
        ("\x00", "not readable as YAML"),
        ("", "expected a list of steps"),
        ("name: a", "expected a list of steps"),
        ("- a", "expected name, remove and restore in step 1"),
        ("- remove: {x: 1}", "expected a name, in quotes if it is a number, in step 1"),
        ("- name: 5", "in quotes"),
        ("- {name: a, remov: {x: 1}}", "unknown key 'remov' in step 1"),
        ("- {name: a, remove: [x]}", "under remove of step 'a', got a list"),
        ("- {name: a, remove: {x: yes}}", "got True"),
        ("- {name: a, remove: {x: many}}", "expected a count such as 50"),
        ("- {name: a, remove: {x: [0.5]}}", "expected units such as 0, 3 or 5-9"),
        ("- {name: a, remove: {x: [-1]}}", "expected units such as 0, 3 or 5-9"),
        ("- {name: a, remove: {x: [9-5]}}", "from low to high"),
        ("- {name: a, remove: {x: [1-4, 3]}}", "unit 3 is named twice"),
    ],
)
def test_a_mistake_in_a_plan_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        load_plan(write(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"plan none.yaml \(no such file"):
        load_plan("none.yaml")
    with pytest.raises(OptionError, match="cannot read"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("50", 50),
        ("0.5", 0.5),
        (".25", 0.25),
        ("1.", 1.0),
        ("1e-2", 0.01),
        ("[1,2,5-9]", (1, 2, 5, 6, 7, 8, 9)),
        ("1,2,5-9", (1, 2, 5, 6, 7, 8, 9)),
        (" [3, 4]", (3, 4)),
        ("[1]", (1,)),
        ("5-6", (5, 6)),
    ],
)
def test_removals_of_the_command_line(value: str, wanted: Wanted) -> None:
    found = parse_removals([f"features.0:{value}", "conv1:2"])
    assert found == {"features.0": wanted, "conv1": 2}
    assert type(found["features.0"]) is type(wanted)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["features.0"], "expected LAYER:"),
        ([":5"], "expected LAYER:"),
        (["a:1", "a:[3]"], "a is named twice"),
        (["a:"], "expected units such as"),
        (["a:[]"], "expected units such as"),
        (["a:."], "expected units such as"),
        (["a:-3"], "expected units such as"),
        (["a:[1,1]"], "unit 1 is named twice"),
        (["a:some"], "got 'some'"),
    ],
)
def test_removals_that_are_none(texts: list[str], message: str) -> None:
    with pytest.raises(OptionError) as error:
        parse_removals(texts)
    assert message in str(error.value)


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
        ([PlanStep("a", {"hidden": (2,)})], "unit 2 of hidden is gone already"),
        ([PlanStep("a", {"hidden": (4,)})], "expected units of hidden from 0 to 3, got 4"),
        ([PlanStep("a", {"hidden": ()})], "the list of units of hidden is empty"),
        ([PlanStep("a", {}, {"hidden": (1,)})], "unit 1 of hidden is there"),
        ([PlanStep("a", {}, {"hidden": 2})], "2 units of hidden cannot be restored, 1 are gone"),
        ([PlanStep("a", {"conv1": 2}, {"conv1": 1})], "1 units of conv1 cannot be restored"),
        ([PlanStep("a", {"conv1": 0})], "expected at least one unit of conv1, got 0"),
        ([PlanStep("a", {"conv1": 1.5})], r"expected a share of conv1 in (0, 1], got 1.5"),
        ([PlanStep("a", {"conv1": 0.0})], r"in (0, 1], got 0"),
        ([PlanStep("a", {"conv1": float("nan")})], r"in (0, 1], got nan"),
        ([PlanStep("a", {"conv1": 0.01})], "0.01 of the 8 units of conv1 that are there"),
        ([PlanStep("a", {}, {"conv1": 1.0})], "of the 0 units of conv1 that are gone"),
        (
            [PlanStep("a", {"conv1": 3}), PlanStep("b", {"conv2": (1,)}, {"conv2": (1,)})],
            "step 'b': unit 1 of conv1 is removed and restored",
        ),
        (
            [PlanStep("a", {"conv1": 3}), PlanStep("b", {}, {"conv1": 3}),
             PlanStep("c", {}, {"conv1": (1,)})],
            "step 'c': unit 1 of conv1 is there",
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
