"""Accuracy and distance along a merge's path: figure 2F of arXiv 2012.09605."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geomerge.report.labels import short_task
from geomerge.report.picture import STYLES, write_picture

__all__ = ["draw_curves"]


def draw_curves(report: dict[str, Any], file: Path) -> None:
    """Draw ``curves.png`` and ``curves.svg`` from a report.

    Args:
        report: Content of ``report.json``.
        file: File of the picture.
    """
    from matplotlib.figure import Figure

    curve, t = report["curve"], report["crossover"]["t"]
    ts = [point["t"] for point in curve]
    figure = Figure(figsize=(7, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    for k, side in enumerate(report["networks"]):
        color, line, marker = STYLES[k % len(STYLES)]
        values = [point["accuracy"][side] for point in curve]
        if values[0] is None:
            continue
        task = report["networks"][side]["task"]
        label = f"{short_task(task)} (task of {side})"
        upper.plot(
            ts, [100 * v for v in values], line, color=color, marker=marker, ms=3, label=label
        )
    for axis in (upper, lower):
        axis.axvline(t, color="0.35", lw=1, ls=":")
        axis.grid(alpha=0.25)
    upper.annotate(
        f"crossover, t = {t:.3f}",
        (t, 0.04),
        xycoords=("data", "axes fraction"),
        xytext=(-6, 0) if t > 0.5 else (6, 0),
        textcoords="offset points",
        ha="right" if t > 0.5 else "left",
        color="0.25",
    )
    networks = report["networks"].values()
    if any(network.get("measure") == "loss" for network in networks):
        upper.set_ylabel("1 / perplexity, selection split (%)")
        upper.set_ylim(bottom=0)
    else:
        upper.set_ylabel("accuracy, selection split (%)")
        upper.set_ylim(-2, 102)
    if upper.lines[:-1]:  # else no task has labels
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    first, *_, last = report["networks"]
    lower.plot(ts, [point["distance"][last] for point in curve], color="0.2", marker=".", ms=4)
    lower.set_ylabel(f"distance to {last}")
    lower.set_ylim(bottom=0)
    lower.set_xlabel(f"t: share of the path's length, from {first} (0) to {last} (1)")
    write_picture(figure, file)
