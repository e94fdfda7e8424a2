"""Losses in the plane through a merge's ends and crossover, as contours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geomerge.report.labels import short_task
from geomerge.report.picture import STYLES, write_picture

__all__ = ["HIGHEST", "draw_plane"]

_LEVELS = 12
HIGHEST = 3.0  # nats; a guess among ten classes loses 2.3, and far higher losses hide the rest


def draw_plane(report: dict[str, Any], file: Path) -> None:
    """Draw ``plane.png`` and ``plane.svg``: each task's loss, the networks and the path.

    Args:
        report: Content of ``report.json``. Nothing is drawn where it has no plane.
        file: File of the picture.
    """
    import numpy as np
    from matplotlib.figure import Figure

    plane = report["plane"]
    if plane is None:
        return
    losses = plane["losses"]
    figure = Figure(figsize=(5.2 * len(losses), 5.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(losses), sharey=True))
    levels = np.linspace(0, HIGHEST, _LEVELS + 1)
    for axis, (name, rows) in zip(axes, losses.items(), strict=True):
        heights = np.nan_to_num(np.array(rows, dtype=float), nan=HIGHEST)
        grid = (plane["xs"], plane["ys"], heights)
        filled = axis.contourf(*grid, levels=levels, cmap="bone_r", alpha=0.6, extend="max")
        axis.contour(*grid, levels=levels[1:], colors="0.45", linewidths=0.4)
        color = STYLES[0][0]
        xs, ys = ([point[k] for point in plane["path"]] for k in ("x", "y"))
        axis.plot(xs, ys, "-", color=color, marker="o", ms=2.5, lw=1.5, label="path")
        for mark, (x, y) in plane["marks"].items():
            star = mark == "crossover"
            axis.plot(
                [x], [y], "*" if star else "s", color="white", mec="black", ms=14 if star else 8,
                zorder=4, label=mark if star else None, ls="",
            )  # fmt: skip
            if not star:
                axis.annotate(mark, (x, y), xytext=(7, 5), textcoords="offset points", zorder=5)
        task = short_task(report["networks"][name]["task"])
        axis.set_title(f"loss on {task}, the task of {name}")
        axis.set_xlabel("along the line between the ends (distance of weights)")
    axes[0].set_ylabel("toward the crossover")
    axes[0].legend(loc="upper right")
    bar = figure.colorbar(filled, ax=list(axes), shrink=0.9)
    bar.set_label("cross-entropy (nats)")
    off = max(point["off"] for point in plane["path"])
    figure.supxlabel(
        f"{plane['examples']} examples of each selection split. The path leaves the plane by up "
        f"to {off:.2g} and is projected.",
        fontsize="small", color="0.25",
    )  # fmt: skip
    write_picture(figure, file)
