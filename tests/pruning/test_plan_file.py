from __future__ import annotations

from pathlib import Path

import pytest

from geomerge.errors import OptionError
from geomerge.pruning.plan import (
    PlanStep,
    Wanted,
    load_plan,
    parse_removals,
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
