"""Validation of reconfiguration plans by the numbers of removed and restored units.

It requires neither weights nor data, so that impossible plans are refused before any walk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from geomerge.errors import OptionError
from geomerge.pruning.plan_file import PlanStep, Wanted, load_plan, parse_removals
from geomerge.pruning.units import Units, unit_named

__all__ = ["PlanStep", "Wanted", "check_plan", "load_plan", "parse_removals", "resolve"]


def resolve(wanted: Wanted, available: Sequence[int]) -> int | tuple[int, ...]:
    """Return the number or the list of units of a step.

    Args:
        wanted: Count, share of the available units (rounded to units), or list of units.
        available: Units to choose from, either all present or all removed ones.

    Returns:
        Number of units if a choice is left, else the units.

    Raises:
        OptionError: If more or other units are wanted than are available.
    """
    if isinstance(wanted, tuple):
        if missing := set(wanted) - set(available):
            raise OptionError(f"unit {min(missing)} is not among those to choose; leave it out")
        return wanted
    count = _count(wanted, len(available))
    if count > len(available):
        raise OptionError(f"expected at most {len(available)} units, got {count}; choose fewer")
    return count


def check_plan(
    steps: Sequence[PlanStep], units: Mapping[str, Units], gone: Mapping[str, Sequence[int]]
) -> None:
    """Check that a plan can be carried out for some choice of the units of counts and shares.

    Counts and shares refer to the units before the step; removal precedes restoration. A list of
    units after a count for the same layer is accepted if some choice allows it.

    Args:
        steps: Steps of the plan.
        units: Result of :func:`~geomerge.pruning.units.find_units`; tied layers can be given by any
            of their names.
        gone: Units that are removed before the first step, by layer.

    Raises:
        OptionError: If the plan is empty, or a step repeats a name, is empty, has an unknown layer
            or unit, leaves a layer empty, restores more units than are removed, removes a removed
            unit, restores a present one, or does both to one unit.
    """
    if not steps:
        raise OptionError("the plan has no steps, expected at least one; write one")
    states: dict[str, _State] = {}
    for name, away in gone.items():
        one = unit_named(units, name)
        states[one.layer] = _State(one.count, set(one.chosen(away).tolist()))
    names: set[str] = set()
    for step in steps:
        if step.name in names:
            raise OptionError(
                f"two steps are named {step.name!r}, expected names of their own; rename one"
            )
        names.add(step.name)
        if not step.remove and not step.restore:
            raise OptionError(f"step {step.name!r} does nothing; remove or restore units in it")
        try:
            _carry_out(step, units, states)
        except OptionError as error:
            raise OptionError(f"step {step.name!r}: {error}") from error


class _State:
    """Known state of a layer's units during a plan.

    The units of a count are chosen by the walk. Before it a unit is certainly removed, certainly
    present, or undetermined.

    Args:
        count: Number of units of the layer.
        gone: Units that are removed at the start.
    """

    def __init__(self, count: int, gone: set[int]) -> None:
        self.count, self.gone = count, len(gone)
        self.surely_gone, self.surely_there = gone, set(range(count)) - gone

    @property
    def there(self) -> int:
        return self.count - self.gone

    def apply(self, removed: int | tuple[int, ...], restored: int | tuple[int, ...]) -> None:
        """Remove units and restore others."""
        self.gone += _number(removed) - _number(restored)
        one, other = self.surely_there, self.surely_gone
        self.surely_there = _after(one, removed) | _named(restored)
        self.surely_gone = _after(other, restored) | _named(removed)
        # If all removed units are known, all present ones are, and vice versa.
        if self.gone == len(self.surely_gone):
            self.surely_there = set(range(self.count)) - self.surely_gone
        elif self.there == len(self.surely_there):
            self.surely_gone = set(range(self.count)) - self.surely_there


def _after(known: set[int], leaving: int | tuple[int, ...]) -> set[int]:
    """Return the units that certainly remain, none if the leaving units are not known."""
    return known - set(leaving) if isinstance(leaving, tuple) else set() if leaving else set(known)


def _named(chosen: int | tuple[int, ...]) -> set[int]:
    return set(chosen) if isinstance(chosen, tuple) else set()


def _number(chosen: int | tuple[int, ...]) -> int:
    return len(chosen) if isinstance(chosen, tuple) else chosen


def _carry_out(step: PlanStep, units: Mapping[str, Units], states: dict[str, _State]) -> None:
    """Check one step and update the states."""
    removed, restored = _by_set(step.remove, units), _by_set(step.restore, units)
    for layer in {**removed, **restored}:
        one = units[layer]
        state = states.setdefault(layer, _State(one.count, set()))
        leaving = _removed(one, removed[layer], state) if layer in removed else ()
        back = _restored(one, restored[layer], state) if layer in restored else ()
        if both := _named(leaving) & _named(back):
            raise OptionError(
                f"unit {min(both)} of layer {layer} is removed and restored; choose one"
            )
        state.apply(leaving, back)


def _removed(one: Units, wanted: Wanted, state: _State) -> int | tuple[int, ...]:
    chosen = _meant(one, wanted, state.there, "that are there")
    if again := _named(chosen) & state.surely_gone:
        raise OptionError(f"unit {min(again)} of layer {one.layer} is gone already; leave it out")
    if _number(chosen) >= state.there:
        raise OptionError(
            f"layer {one.layer} would be empty: {_number(chosen)} units go and {state.there} of "
            f"{one.count} are there; keep at least one"
        )
    return chosen


def _restored(one: Units, wanted: Wanted, state: _State) -> int | tuple[int, ...]:
    chosen = _meant(one, wanted, state.gone, "that are gone")
    if again := _named(chosen) & state.surely_there:
        raise OptionError(
            f"unit {min(again)} of layer {one.layer} is there and cannot be restored; leave it out"
        )
    if _number(chosen) > state.gone:
        raise OptionError(
            f"{_number(chosen)} units of layer {one.layer} cannot be restored, {state.gone} are "
            "gone; restore fewer, or remove them in a step before"
        )
    return chosen


def _meant(one: Units, wanted: Wanted, available: int, where: str) -> int | tuple[int, ...]:
    """Return the units or their number, at least one."""
    if isinstance(wanted, float) and not 0 < wanted <= 1:
        raise OptionError(
            f"expected a share of layer {one.layer} in (0, 1], got {wanted:g}; correct it"
        )
    if isinstance(wanted, int) and wanted < 1:
        raise OptionError(
            f"expected at least one unit of layer {one.layer}, got {wanted}; correct it"
        )
    if isinstance(wanted, tuple):
        one.chosen(wanted)  # refuses units that the layer does not have
        if not wanted:
            raise OptionError(
                f"the list of units of layer {one.layer} is empty; name some, or drop it"
            )
        return wanted
    count = _count(wanted, available)
    if count == 0:
        raise OptionError(
            f"a share of {wanted:g} of the {available} units of layer {one.layer} {where} is less "
            "than one; ask for more, or drop it"
        )
    return count


def _count(wanted: int | float, available: int) -> int:
    return round(wanted * available) if isinstance(wanted, float) else wanted


def _by_set(wanted: Mapping[str, Wanted], units: Mapping[str, Units]) -> dict[str, Wanted]:
    """Return the wanted units by :attr:`Units.layer` instead of other names of tied layers."""
    found: dict[str, Wanted] = {}
    for name, value in wanted.items():
        one = unit_named(units, name)
        if one.layer in found:
            raise OptionError(
                f"layer {name} is tied to another layer that is named, of "
                f"{' and '.join(one.layers)}; "
                "name one of them"
            )
        found[one.layer] = value
    return found
