"""Options fields: flat names, pieces, checks and recipes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from geomerge.errors import OptionError
from geomerge.options import (
    FlatOptions,
    at_least,
    build_options,
    check_options,
    option,
    option_fields,
    piece,
    positive,
    recorded,
    replace_options,
)


@dataclass(frozen=True)
class Rows:
    only: tuple[str, ...] = option((), "rows", choices=("a", "b"))
    more: tuple[str, ...] = option((), "further rows", choices=("c",), closed=False)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Pace:
    steps: int = option(10, "number of steps", group="walk", check=positive)
    rate: float = option(0.1, "learning rate", group="walk", check=positive, formerly="speed")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, init=False)
class Journey(FlatOptions):
    start: str = option("a", "start of the journey", choices=("a", "b"))
    pace: Pace = piece(Pace)
    device: str = option("cpu", "device", recorded=False)


def test_flat_names_reach_into_pieces() -> None:
    journey = Journey("b", steps=3)
    assert journey == Journey(start="b", pace=Pace(steps=3))
    assert journey == build_options(Journey, {"start": "b", "steps": 3})
    assert journey == replace_options(Journey(), start="b", steps=3)
    assert Journey(pace=Pace(rate=0.5), steps=3).pace == Pace(3, 0.5)
    assert replace_options(journey, rate=0.5).pace == Pace(3, 0.5)
    assert dataclasses.replace(journey, device="cuda").pace == Pace(steps=3)
    assert [one.name for one in option_fields(Journey)] == ["start", "steps", "rate", "device"]


def test_recipes_are_flat() -> None:
    assert recorded(Journey(steps=3)) == {"start": "a", "steps": 3, "rate": 0.1}


def test_earlier_names_are_understood() -> None:
    with pytest.warns(DeprecationWarning, match="`speed` is called `rate` now"):
        assert Journey(speed=0.5).pace.rate == 0.5


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"steps": 0}, "expected `steps` to be a positive number, got 0"),
        ({"stps": 3}, "unknown option `stps`; did you mean 'steps'"),
        ({"start": "c"}, "unknown start 'c'"),
    ],
)
def test_values_are_checked(values: dict[str, object], part: str) -> None:
    with pytest.raises(OptionError, match=part):
        Journey(**values)
    with pytest.raises(OptionError, match=part):
        replace_options(Journey(), **values)


def test_arguments_are_given_once() -> None:
    with pytest.raises(TypeError, match="'start' twice"):
        Journey("a", start="b")
    with pytest.raises(TypeError, match="takes 3 arguments"):
        Journey("a", Pace(), "cpu", "more")


def test_every_name_of_a_list_is_checked() -> None:
    assert Rows(("a", "b"), ("anything",)).more == ("anything",)
    with pytest.raises(OptionError, match="unknown only 'd'"):
        Rows(("a", "d"))


def test_numbers_are_checked() -> None:
    assert positive(0.1) is None
    assert [positive(value) for value in (0, -1.0, float("inf"), float("nan"))] == [
        "a positive number"
    ] * 4
    assert at_least(2)(2) is None
    assert at_least(2)(1.5) == "2 or more"
