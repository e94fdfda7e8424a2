"""Parsers and writers of removals, as YAML plans and ``LAYER:50`` texts."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from geomerge.errors import OptionError, did_you_mean, first_line

__all__ = ["PlanStep", "Wanted", "load_plan", "parse_removals", "removal_texts", "wanted_units"]

Wanted: TypeAlias = int | float | tuple[int, ...]  # count, share, or units numbered from 0
_MOST_UNITS = 1_000_000  # largest number of units in a range
_TAKEN = ("dense", "recipe", "report", "curves", "moves")
_KEYS = ("name", "remove", "restore")
_FORMS = "a count such as 50, a share such as 0.5 or a list of units such as [0, 3, 5-9]"


@dataclass(frozen=True)
class PlanStep:
    """Step of a reconfiguration plan.

    Attributes:
        name: Name of the step, unique in the plan.
        remove: Units to remove, by layer: a number of the present units (int), a share of them (a
            float in (0, 1], rounded to units), or units numbered from 0.
        restore: Units to restore, by layer, in the same forms, among those removed before the step.
    """

    name: str
    remove: Mapping[str, Wanted] = field(default_factory=dict)
    restore: Mapping[str, Wanted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Normalise the units.

        Raises:
            OptionError: If units have none of the forms.
        """
        for key in ("remove", "restore"):
            units = wanted_units(getattr(self, key), f"{key} of step {self.name!r}")
            object.__setattr__(self, key, units)


def wanted_units(wanted: Mapping[str, Any], where: str) -> dict[str, Wanted]:
    """Normalise units by layer: counts as int, shares as float, lists as tuples.

    Args:
        wanted: Count, share or sequence of units, by layer.
        where: Description of the source, for error messages.

    Raises:
        OptionError: If a value has none of these forms.
    """
    units: dict[str, Wanted] = {}
    for layer, value in wanted.items():
        if isinstance(value, Integral) and not isinstance(value, bool):
            units[layer] = int(value)
        elif isinstance(value, float):
            units[layer] = value
        elif isinstance(value, (list, tuple, range)):
            units[layer] = _indices(value, f"layer {layer} under {where}")
        else:
            raise OptionError(
                f"expected {_FORMS} for layer {layer} under {where}, got {_kind(value)}"
            )
    return units


def load_plan(path: Path | str) -> list[PlanStep]:
    """Read a plan: a YAML list of ``{name, remove: {layer: ...}, restore: {layer: ...}}``.

    Args:
        path: Path of the file. Each layer has a count, a share or a list of units; ``5-9`` in a
            list is a range including both ends.

    Returns:
        Steps in order, not yet validated by :func:`~geomerge.pruning.plan.check_plan`.

    Raises:
        OptionError: If the file cannot be read or has another form.
    """
    try:
        # A SafeLoader, which constructs plain data only.
        found = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_NamesOnce)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OptionError(f"cannot read the plan {path} ({reason}); check the path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates, encoding
        raise OptionError(
            f"the plan {path} is not readable as YAML ({_where(error)}); correct it there"
        ) from error
    if not isinstance(found, list):
        raise OptionError(
            f"expected a list of steps in the plan {path}, each beginning with '- name:', got "
            f"{_kind(found)}; write one"
        )
    return [_step(item, f"step {k} of {path}") for k, item in enumerate(found, 1)]


def parse_removals(texts: Sequence[str]) -> dict[str, Wanted]:
    """Parse the removals of a command line.

    Args:
        texts: Texts ``LAYER:50`` (a count), ``LAYER:0.5`` (a share), ``LAYER:[1,2,5-9]`` or
            ``LAYER:1,2,5-9`` (units numbered from 0, ranges including both ends); ``LAYER:[1]``
            means the unit 1.

    Returns:
        Units to remove, by layer.

    Raises:
        OptionError: If a text has another form, or two texts name the same layer.

    Example:
        >>> from geomerge.pruning.plan import parse_removals
        >>> wanted = parse_removals(["features.0:50", "classifier.0:1,2,5-9"])
        >>> list(wanted)
        ['features.0', 'classifier.0']
    """
    removals: dict[str, Wanted] = {}
    for text in texts:
        layer, _, value = text.replace(" ", "").rpartition(":")
        listed = re.fullmatch(r"\[(.+)\]", value)
        if not layer:
            raise OptionError(f"expected LAYER: and {_FORMS}, got {text!r}")
        if layer in removals:
            raise OptionError(f"layer {layer} is named twice, in {text!r} as well; name it once")
        if listed is None and re.fullmatch(r"\d+", value):
            removals[layer] = int(value)
        elif listed is None and re.fullmatch(r"\d*\.\d*|\d+(\.\d*)?e-?\d+", value) and value != ".":
            removals[layer] = float(value)
        else:
            removals[layer] = _indices((listed[1] if listed else value).split(","), repr(text))
    return removals


def removal_texts(removals: Mapping[str, Wanted] | None) -> list[str]:
    """Return removals as texts for :func:`parse_removals`, as used in commands and recipes.

    Example:
        >>> from geomerge.pruning.plan_file import removal_texts
        >>> removal_texts({"features.0": 50, "classifier.0": (1, 2, 5, 6, 7), "classifier.3": (4,)})
        ['features.0:50', 'classifier.0:1,2,5-7', 'classifier.3:[4]']
    """
    return [f"{layer}:{_text(wanted)}" for layer, wanted in (removals or {}).items()]


def _text(wanted: Wanted) -> str:
    if not isinstance(wanted, tuple):
        return str(wanted)
    if len(wanted) == 1:
        return f"[{wanted[0]}]"
    runs: list[list[int]] = []
    for unit in wanted:
        if runs and unit == runs[-1][-1] + 1:
            runs[-1].append(unit)
        else:
            runs.append([unit])
    # Three or more consecutive units are written as a range.
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return ",".join(parts)


class _NamesOnce(yaml.SafeLoader):
    """Loader of plain data that refuses repeated keys and keeps keys as text (layer 1.10)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "expected a name before the colon"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if key.value in found:
                problem = f"{key.value!r} is a key twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            found[key.value] = self.construct_object(value, deep=True)
        return found


def _where(error: Exception) -> str:
    """Return the problem of an error, with its line if known."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return first_line(error)


def _step(item: Any, where: str) -> PlanStep:
    """Parse one step."""
    if not isinstance(item, dict):
        raise OptionError(f"expected name, remove and restore in {where}, got {_kind(item)}")
    for key in item:
        if key not in _KEYS:
            raise OptionError(f"unknown key {key!r} in {where}{did_you_mean(key, _KEYS)}")
    name = item.get("name")
    if not isinstance(name, str) or not name.strip():
        raise OptionError(f"expected a name, in quotes if it is a number, in {where}; give one")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.+-]{0,99}", name) is None or name in _TAKEN:
        raise OptionError(
            f"the name {name[:60]!r} in {where} becomes a file's: expected up to 100 letters, "
            f"digits, spaces or _.+-, other than {', '.join(_TAKEN)}; choose another"
        )
    remove, restore = (
        _wanted(item.get(key), f"{key} of step {name!r}") for key in ("remove", "restore")
    )
    return PlanStep(name, remove, restore)


def _wanted(found: Any, where: str) -> dict[str, Wanted]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise OptionError(f"expected layers with {_FORMS} under {where}, got {_kind(found)}")
    return wanted_units(found, where)


def _indices(entries: Sequence[Any], where: str) -> tuple[int, ...]:
    """Parse units: whole numbers from 0, and texts of ranges including both ends."""
    found: list[int] = []
    for entry in entries:
        match = None if isinstance(entry, bool) else re.fullmatch(r"(\d+)(?:-(\d+))?", str(entry))
        if match is None:
            raise OptionError(f"expected units such as 0, 3 or 5-9 in {where}, got {entry!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > _MOST_UNITS:
            raise OptionError(
                f"expected a range of at most {_MOST_UNITS} units in {where}, got {entry!r}"
            )
        if last < first:
            raise OptionError(f"expected a range from low to high in {where}, got {entry!r}")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        twice = next(unit for k, unit in enumerate(found) if unit in found[:k])
        raise OptionError(f"unit {twice} is named twice in {where}; name it once")
    return tuple(found)


def _kind(value: Any) -> str:
    names = {dict: "names with values", list: "a list", type(None): "nothing"}
    return names.get(type(value), repr(value)[:60])
