"""What the options of a merge and of a sparsification share: checks, and what a recipe records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from geomerge.errors import OptionError, did_you_mean

__all__ = ["check_known", "check_positive", "parse_size", "recorded"]

_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}

# Where the data lies and what computes change nothing that a recipe stands for.
_PLACES = ("data_root", "download", "device")


def check_known(what: str, value: str | None, known: Sequence[str]) -> None:
    """Refuse a name that is not known; None is no name.

    Raises:
        OptionError: With the names that would have been right.
    """
    if value is not None and value not in known:
        raise OptionError(f"unknown {what} {value!r}{did_you_mean(value, known)}")


def check_positive(flag: str, number: float | None) -> None:
    """Refuse a number that is not positive and finite; None is no number.

    Raises:
        OptionError: If it is not.
    """
    if number is not None and not 0 < number < float("inf"):
        raise OptionError(f"expected a positive --{flag}, got {number}; leave it out")


def recorded(options: Any, *others: str) -> dict[str, Any]:
    """Return the options that decide the result, as JSON keeps them.

    Args:
        options: A dataclass.
        others: Fields that are left out beside those that say where data lies and what computes.
    """
    fields = {k: v for k, v in asdict(options).items() if k not in (*_PLACES, *others)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def parse_size(text: str) -> int:
    """Return the bytes that ``"20MB"`` stands for.

    Raises:
        OptionError: If it stands for none.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMG]?B?)\s*", text.upper())
    unit = "" if found is None else found[2] if found[2].endswith("B") else found[2] + "B"
    size = 0 if found is None else int(float(found[1]) * _UNITS[unit])
    if size < 1:
        raise OptionError(f"expected a size such as 20MB, got {text!r}; give one")
    return size
