"""Exceptions of geomerge, whose messages give a remedy, and its warnings.

Every message is one sentence: the expected value, the given one and the remedy. Arguments are in
backticks, by their names in Python; the command line replaces them by its flags. The classes are
built-in exceptions as well, so that callers may catch either.
"""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = [
    "AssumptionWarning",
    "CheckpointError",
    "CheckpointWarning",
    "GeomergeError",
    "NoLabelsError",
    "NumericalError",
    "OptionError",
    "Problems",
    "ProcessError",
    "QPError",
    "RunError",
    "TaskError",
    "TaskWarning",
    "did_you_mean",
    "first_few",
    "first_line",
    "type_of",
    "warn_assumption",
]

_NAMED = 3  # names in a sentence


class GeomergeError(Exception):
    """Base of all errors that geomerge raises on purpose."""


class CheckpointError(GeomergeError, ValueError):
    """A file of weights cannot be read, built or combined with another."""


class CheckpointWarning(UserWarning):
    """A file of weights left something open, and a choice was made."""


class TaskError(GeomergeError, ValueError):
    """A task's data is unknown, missing, empty or does not fit the network."""


class NoLabelsError(TaskError):
    """Data has no labels, and something needs them.

    Attributes:
        inputs: Inputs, which are enough for a walk.
    """

    def __init__(self, message: str, inputs: Any) -> None:
        super().__init__(message)
        self.inputs = inputs


class TaskWarning(UserWarning):
    """Data left something open, and a choice was made."""


class OptionError(GeomergeError, ValueError):
    """An option has a value that cannot be used."""


class RunError(GeomergeError, OSError):
    """A run folder or an output file cannot be read or written."""


class NumericalError(GeomergeError, ArithmeticError):
    """A computation left the finite numbers or could not meet its tolerance."""


class ProcessError(GeomergeError, RuntimeError):
    """One of several processes that compute one result has ended."""


class QPError(NumericalError):
    """A quadratic program has no solution, or none that could be verified."""


class AssumptionWarning(UserWarning):
    """Something that files leave open, such as a network's activation, had to be assumed."""


class Problems(list[str]):
    """Sentences about everything that is wrong, each with its remedy, none twice.

    Args:
        strict: Whether the first problem is raised rather than collected.
    """

    def __init__(self, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict

    def note(self, sentence: str) -> None:
        """Add a sentence if it is new."""
        if sentence not in self:
            self.append(sentence)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Add the sentence of an error that the block raises, and go on after the block."""
        try:
            yield
        except GeomergeError as error:
            if self.strict:
                raise
            self.note(str(error))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or the list of all names.

    Args:
        name: Name that the user wrote.
        known: Names that are allowed.

    Returns:
        The end of a sentence, beginning with ``"; "``.
    """
    names = sorted(known)
    begun = [other for other in names if len(name) > 2 and other.startswith(name.lower())]
    close = begun or difflib.get_close_matches(name.lower(), names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return "; known: " + ", ".join(names)


def first_few(names: Sequence[str]) -> str:
    """Return names for a sentence, the first three of many and the number of the others.

    Args:
        names: Names.
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def warn_assumption(sentence: str) -> None:
    """Warn of something that had to be assumed, at the line of the caller outside of geomerge.

    Args:
        sentence: Assumption, and the option that replaces it.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("geomerge"):
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, AssumptionWarning, stacklevel=level)


def first_line(error: BaseException) -> str:
    """Return the first sentence of another package's error, or its type where it has no message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()  # without the number and the path
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.split(r"\.(?:\s|$)", line)[0][:160]


def type_of(value: object) -> str:
    """Return the name of a value's type with its article, such as ``"an int"``."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"
