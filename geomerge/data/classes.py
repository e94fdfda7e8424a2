"""Tasks of some classes of another task, written ``NAME@0-4``."""

from __future__ import annotations

import re

import torch

from geomerge.data.sources import Pair
from geomerge.errors import TaskError

__all__ = ["split_classes", "take_classes"]

_DIGITS = 6  # digits of a class's number; a longer range would fill the memory
_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def split_classes(name: str) -> tuple[str, list[int] | None]:
    """Split a task's name into the whole task's and the classes taken, None for all of them.

    Raises:
        TaskError: If the classes are written as a range that runs backwards, or twice.
    """
    whole, at, text = name.rpartition("@")
    if not at or _LIST.fullmatch(text) is None:
        return name, None
    classes: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if max(len(first), len(last)) > _DIGITS:
            raise TaskError(f"expected classes such as 0-4 or 1,3,5 after @, got {part[:40]!r}")
        classes += range(int(first), int(last or first) + 1)
    if not classes or len(set(classes)) < len(classes):
        raise TaskError(f"expected classes such as 0-4 or 1,3,5 after @, got {text!r}")
    return whole, classes


def take_classes(data: Pair, classes: list[int], name: str) -> Pair:
    """Select the examples of some classes, renumbered from 0 in the order given.

    Raises:
        TaskError: If a class has no example.
    """
    x, y = data
    found = set(y.unique().tolist())
    for k in classes:
        if k not in found:
            raise TaskError(
                f"{name} asks for class {k}, and the data has only {sorted(found)}; name others"
            )
    new = torch.full_like(y, -1, dtype=torch.long)
    for number, k in enumerate(classes):
        new[y == k] = number
    kept = new >= 0
    return x[kept], new[kept]
