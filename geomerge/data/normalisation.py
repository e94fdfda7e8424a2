"""Normalisation of inputs: given by the user, recorded in a checkpoint, or usual for a data set."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geomerge.errors import OptionError, TaskError, did_you_mean

__all__ = [
    "PLAIN",
    "Normalisation",
    "check_normalised",
    "normalisation_of",
    "parse_normalisation",
    "recorded_normalisation",
    "split_normalisations",
]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel (or one for all), of inputs scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (", ".join(f"{x:g}" for x in numbers) for numbers in (self.mean, self.std))
        return f"mean {mean} and deviation {std}"

    def to_json(self) -> dict[str, list[float]]:
        """Return the numbers as JSON keeps them."""
        return {"mean": list(self.mean), "std": list(self.std)}


PLAIN = Normalisation((0.0,), (1.0,))  # leaves inputs as they are


def parse_normalisation(text: str) -> Normalisation:
    """Read ``"MEAN/STD"``, each one number or one per channel with commas.

    Raises:
        OptionError: If the text is not that.
    """
    mean, _, std = text.partition("/")
    try:
        numbers = [tuple(float(x) for x in part.split(",")) for part in (mean, std)]
    except ValueError:
        raise OptionError(
            f"expected MEAN/STD such as 0.1307/0.3081 for a normalisation, got {text!r}"
        ) from None
    return Normalisation(*numbers)


def split_normalisations(texts: Sequence[str]) -> dict[str, Normalisation]:
    """Read ``"TASK=MEAN/STD"`` texts.

    Raises:
        OptionError: If one is not that.
    """
    found = {}
    for text in texts:
        task, equals, numbers = text.rpartition("=")
        if not equals:
            raise OptionError(f"expected TASK=MEAN/STD in `normalisation`, got {text!r}")
        found[task] = parse_normalisation(numbers)
    return found


def recorded_normalisation(meta: Mapping[str, Any], task: str) -> Normalisation | None:
    """Return the normalisation that a checkpoint's metadata records for a task, or None.

    Raises:
        TaskError: If what is recorded is no finite mean and deviation.
    """
    numbers = meta.get("tasks", {}).get(task)
    if numbers is None and meta.get("task") == task:
        numbers = meta.get("normalisation")
    if numbers is None:
        return None
    try:
        mean, std = ([float(x) for x in numbers[part]] for part in ("mean", "std"))
    except (KeyError, TypeError, ValueError, OverflowError):
        mean, std = [], []
    if not mean or not std or not all(map(math.isfinite, [*mean, *std])):
        raise TaskError(
            f"the normalisation recorded for {task} is no mean and deviation; give `normalisation` "
            f"{task}=MEAN/STD"
        )
    return Normalisation(tuple(mean), tuple(std))


def normalisation_of(texts: Sequence[str], manifold: str) -> Normalisation | None:
    """Read ``"TASK=MEAN/STD"`` texts where one task is used; None where it has none.

    Args:
        texts: The texts.
        manifold: Name of the task.

    Raises:
        OptionError: If one is not that, or of another task.
    """
    found = split_normalisations(texts)
    for name in found:
        if name != manifold:
            raise OptionError(
                f"`normalisation` names {name!r}, the manifold is {manifold!r}; name that"
            )
    return found.get(manifold)


def check_normalised(names: Iterable[str], tasks: Collection[str], use: str) -> None:
    """Refuse a normalisation of a task that is not there.

    Args:
        names: Names of tasks with a given normalisation.
        tasks: Names of the tasks.
        use: Use of the tasks, such as ``"measured"``.

    Raises:
        OptionError: If a name is not one of the tasks'.
    """
    for name in names:
        if name not in tasks:
            raise OptionError(
                f"`normalisation` names {name!r}, a task that is not {use}"
                f"{did_you_mean(name, tasks)}"
            )
