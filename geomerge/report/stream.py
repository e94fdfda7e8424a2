"""Picture of a stream: accuracies after each experience, averages and forgetting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geomerge.report.picture import STYLES, write_picture

__all__ = ["draw_stream"]

_NUMBERS = 10  # largest number of experiences with accuracies written into the heat map
_MARKERS = "os^DvPX*<>ph"
_DARK = 0.5  # share of the scale above which numbers are white


def draw_stream(report: dict[str, Any], file: Path) -> None:
    """Draw ``stream.png``: every task's accuracy after each experience, averages, forgetting.

    Args:
        report: Content of ``report.json``.
        file: File of the picture.
    """
    from matplotlib.figure import Figure

    rows = report["rows"]
    shown = next((r for r in rows if len(r["matrix"]) > 1), None)
    names = [e["name"] for e in report["stream"]["experiences"]]
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.15, 1.3, 0.75])
    if shown is not None:
        _matrix(left, shown, len(names))
    _averages(middle, rows, len(names))
    _forgetting(right, rows)
    figure.suptitle(f"{report['stream']['name']}, {report['network']['architecture']}")
    write_picture(figure, file)


def _matrix(axis: Any, row: dict[str, Any], count: int) -> None:
    """Draw a heat map of one method's accuracies: tasks in rows, experiences in columns."""
    values = [
        [100 * line[task] if task < len(line) else float("nan") for line in row["matrix"]]
        for task in range(count)
    ]
    known = [v for line in values for v in line if v == v]
    low, high = min(known), max(known)
    margin = 0.3 * (high - low + 1)  # white is left to the tasks not yet learned
    image = axis.imshow(values, cmap="Greys", vmin=low - margin, vmax=high + margin)
    axis.set_title(f"{row['name']}: accuracy on each task (%)")
    axis.set_xlabel("after experience")
    axis.set_ylabel("task")
    step = 1 + count // (2 * _NUMBERS)
    for ticks, labels in ((axis.set_xticks, str), (axis.set_yticks, str)):
        ticks(range(0, count, step), [labels(k + 1) for k in range(0, count, step)])
    if count > _NUMBERS:
        axis.figure.colorbar(image, ax=axis, shrink=0.8)
        return
    for task, line in enumerate(values):
        for after, value in enumerate(line):
            if value == value:
                dark = image.norm(value) > _DARK
                axis.text(
                    after, task, f"{value:.1f}" if count <= 5 else f"{value:.0f}",
                    ha="center", va="center", size=9, color="white" if dark else "black",
                )  # fmt: skip


def _averages(axis: Any, rows: list[dict[str, Any]], count: int) -> None:
    """Draw the average accuracy on the tasks learned so far, a line for each method."""
    for k, row in enumerate(rows):
        averages = [100 * v for v in row["average"]]
        if len(averages) == 1:
            axis.axhline(
                averages[0], color="0.35", lw=1, ls=(0, (1, 3)),
                label=f"{row['name']}: {averages[0]:.1f}",
            )  # fmt: skip
            continue
        axis.plot(
            range(1, count + 1), averages, **_style(k), lw=2.4 if k == 0 else 1.2, ms=5,
            label=f"{row['name']}: {averages[-1]:.1f}",
        )  # fmt: skip
    axis.set_title("average accuracy on tasks learned so far (%)")
    axis.set_xlabel("after experience")
    axis.set_xticks(range(1, count + 1, 1 + count // 12))
    axis.grid(alpha=0.25)
    axis.figure.legend(loc="outside lower center", ncols=6, frameon=False)


def _forgetting(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Draw a bar for each method."""
    shown = [row for row in rows if row["forgetting"] is not None]
    values = [100 * row["forgetting"] for row in shown]
    bars = axis.barh(
        range(len(shown)), values, color=["0.25", *["0.75"] * max(0, len(shown) - 1)], height=0.6
    )
    axis.bar_label(bars, [f"{v:.1f}" for v in values], padding=3, size=8)
    axis.set_yticks(range(len(shown)), [row["name"] for row in shown])
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.set_title("forgetting (points)")
    axis.spines[["top", "right"]].set_visible(False)


def _style(k: int) -> dict[str, Any]:
    """Return the style of a line; markers differ, for readers who see no colours."""
    color, line, _ = STYLES[k % len(STYLES)]
    return {"color": color, "ls": line, "marker": _MARKERS[k % len(_MARKERS)]}
