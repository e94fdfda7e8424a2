"""Drawing of the paths of a sparsification on the surface of the functional change.

The picture follows figure 2E of arXiv 2012.09605.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from geomerge.pruning.surface import Surface
from geomerge.report.picture import STYLES, write_picture

__all__ = ["draw_paths"]

_START = "start: the dense network"
_KEPT = ("black", "-", "o")  # distinct from the other paths in grey as well
_STEPS = (1.0, 3.0)  # levels in each power of ten
_FINER = 6  # points of the drawn grid for each measured one, along a side
_DEEPEST = 1e-6  # lowest level as a share of the highest


def draw_paths(surface: Surface, file: Path) -> None:
    """Draw ``paths.png``.

    Args:
        surface: Surface and paths.
        file: Path of the picture.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    levels = _levels(surface)
    wide, high = (float(v[-1] - v[0]) for v in (surface.xs, surface.ys))
    size = (7, 5.2 * high / wide + 1.2 + 0.22 * len(surface.tracks))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    grid = _between(surface, levels)
    norm = LogNorm(levels[0], levels[-1])
    filled = axis.contourf(*grid, levels=levels, norm=norm, cmap="bone_r", alpha=0.45)
    axis.contour(*grid, levels=levels[1:], colors="0.4", linewidths=0.5)
    bar = figure.colorbar(filled, ax=axis, ticks=levels, format=lambda value, _: f"{value:g}")
    bar.set_label("functional change from the dense network")
    axis.plot([0], [0], "*", color="white", ms=15, mec="black", zorder=4, ls="", label=_START)
    for k, track in enumerate(surface.tracks):  # thin lines stay visible on the thick line
        color, line, marker = _KEPT if track.chosen else STYLES[1 + (k - 1) % (len(STYLES) - 1)]
        x, y = track.points.T.numpy()
        what = f"{track.name}, kept" if track.chosen else track.name
        label = f"{what}: length {track.length:.3g}, change {track.change:.2g} at its end"
        width, size_of_marks = (4.0, 7) if track.chosen else (1.5, 4)
        axis.plot(x, y, line, color=color, marker=marker, lw=width, ms=size_of_marks, label=label)
        axis.plot(x[-1:], y[-1:], marker, mfc="none", mec=color, ms=13, mew=2.5, zorder=3)
    axis.set_aspect("equal")
    axis.set_xlabel("first principal direction (distance in weights)")
    axis.set_ylabel("second principal direction")
    figure.legend(loc="outside upper center", frameon=False)
    figure.supxlabel(
        f"This plane holds {100 * surface.share:.0f} % of the squared distances from the start; "
        "the paths are projected into it.\n"
        f"Change on {surface.inputs} held-out inputs; the large hollow marks are the ends.",
        fontsize="small",
        color="0.25",
    )
    write_picture(figure, file)


def _between(surface: Surface, levels: list[float]) -> tuple[Any, Any, Any]:
    """Return columns, rows and heights of a finer grid, interpolated by a cubic spline.

    The surface is a bowl near the start: linear interpolation would give contours with corners.
    """
    import numpy as np
    from scipy.interpolate import RectBivariateSpline

    heights = surface.heights.nan_to_num(nan=levels[-1]).clamp(max=levels[-1])
    xs, ys = (
        np.linspace(float(v[0]), float(v[-1]), _FINER * (len(v) - 1) + 1)
        for v in (surface.xs, surface.ys)
    )
    spline = RectBivariateSpline(surface.ys.numpy(), surface.xs.numpy(), heights.numpy())
    return xs, ys, np.clip(spline(ys, xs), levels[0], levels[-1])


def _levels(surface: Surface) -> list[float]:
    """Return the levels from below the lowest positive height to above the highest."""
    heights = surface.heights[surface.heights.isfinite()]
    top = float(heights.max())
    positive = heights[heights > max(_DEEPEST * top, 0.0)]
    if not len(positive):
        return [0.1, 1.0]
    low, high = (math.floor(math.log10(float(v))) for v in (positive.min(), top))
    every = [float(f"{s:g}e{k}") for k in range(low, high + 2) for s in _STEPS]
    first = max(k for k, level in enumerate(every) if level <= float(positive.min()))
    last = min(k for k, level in enumerate(every) if level >= top)
    return every[first : max(last, first + 1) + 1]
