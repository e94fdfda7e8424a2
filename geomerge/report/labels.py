"""Names in pictures: of tasks, and next to points, placed without overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["place_names", "short_task"]

Place = tuple[float, float]  # as a share of the axes' width and height
Box = tuple[float, float, float, float]  # left, right, bottom, top

_RADII = [0.03 + 0.02 * k for k in range(20)]  # distances of a name from its point
_ANGLES = [math.tau * k / 24 for k in range(24)]
_POINT = 0.012  # half of a marker


def short_task(task: str) -> str:
    """Return a task's name, that of a file without its folders, for which there is no room."""
    return task.rsplit("/", 1)[-1] or task


def place_names(
    axis: Any,
    named: Sequence[tuple[str, Place]],
    others: Sequence[Place] = (),
    *,
    width: float = 0.0135,
    height: float = 0.032,
) -> None:
    """Write names near points, each at the nearest free place, with a thin line to its point.

    Args:
        axis: Axes of matplotlib.
        named: Names and their points, in shares of the axes.
        others: Points that no name may cover.
        width: Width of a letter, as a share of the axes.
        height: Height of a line, as a share of the axes.
    """
    taken = [_around(place, _POINT, _POINT) for place in [*(p for _, p in named), *others]]
    for name, (x, y) in sorted(named, key=lambda item: item[1], reverse=True):
        half = width * len(name) / 2
        at = _free((x, y), half, height / 2, taken)
        taken.append(_around(at, half, height / 2))
        axis.annotate(
            name, (x, y), at, xycoords="axes fraction", textcoords="axes fraction", size=8,
            ha="center", va="center", zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkB": 3},
        )  # fmt: skip


def _free(point: Place, half: float, high: float, taken: list[Box]) -> Place:
    """Return the nearest free place for a name; the right of its point if there is none."""
    x, y = point
    for radius in _RADII:
        for angle in _ANGLES:
            # Names are wide: their middle is further away at the sides.
            at = x + (radius + half) * math.cos(angle), y + (radius + high) * math.sin(angle)
            box = _around(at, half, high)
            inside = box[0] >= 0 and box[1] <= 1 and box[2] >= 0 and box[3] <= 1
            if inside and not any(_overlap(box, other) for other in taken):
                return at
    return min(x + _RADII[0] + half, 1 - half), y


def _around(place: Place, wide: float, high: float) -> Box:
    x, y = place
    return x - wide, x + wide, y - high, y + high


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
