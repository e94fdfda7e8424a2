"""Registry of presets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from geomerge.registry import Registry

if TYPE_CHECKING:
    from geomerge.merging.presets.base import Preset

__all__ = ["PRESETS", "preset"]


def _place(cls: type[Preset]) -> float:
    """Return the rank of a preset among those that are tried; last if by its name only."""
    return float("inf") if cls.preference is None else cls.preference


PRESETS: Registry[type[Preset]] = Registry("preset", "geomerge.merging.presets", order=_place)


def preset(name: str) -> Callable[[type[Preset]], type[Preset]]:
    """Register a preset's class under its name.

    Args:
        name: Name, as in the options and in reports.
    """

    def put(cls: type[Preset]) -> type[Preset]:
        cls.name = name
        return PRESETS.add(name, cls)

    return put
