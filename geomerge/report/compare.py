"""Picture of a comparison: accuracy on both tasks, a point for each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geomerge.report.labels import place_names
from geomerge.report.picture import STYLES, write_picture

__all__ = ["GROUPS", "draw_compare"]

# Description, marker and grey of each group of methods.
_LOOKS = {
    "networks": ("the networks themselves", "*", "white"),
    "weights": ("weights alone", "o", "0.85"),
    "activations": ("weighted by inputs", "D", "0.7"),
    "matching": ("units matched", "^", "0.5"),
    "training": ("trained", "s", "0.3"),
    "walks": ("walks", "P", "black"),
}
GROUPS = {group: words for group, (words, _, _) in _LOOKS.items()}
_ZOOM = 15.0  # percentage points below the experts in the right plot
_ABOVE = 2.0  # percentage points above the best there: space for names


def draw_compare(report: dict[str, Any], file: Path) -> None:
    """Draw ``compare.png``: accuracy on one task against that on the other, a point for each row.

    The left plot has the whole plane with the paths of methods, the right one the corner near the
    experts.

    Args:
        report: Content of ``report.json``.
        file: File of the picture.
    """
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row["reason"] is None]
    experts = [100 * report["networks"][side]["expert_test"] for side in "ab"]
    figure = Figure(figsize=(13, 6.8), layout="constrained")
    whole, corner = figure.subplots(1, 2)
    near = [row for row in rows if _gap(row, experts) <= _ZOOM]
    _draw(whole, rows, rows, [row for row in rows if row not in near], [0.0, 0.0], [102.0, 102.0])
    low = [max(expert - _ZOOM, 0.0) for expert in experts]
    high = [
        max([expert, *(100 * row["test"][side] for row in near)]) + _ABOVE
        for expert, side in zip(experts, "ab", strict=True)
    ]
    _draw(corner, rows, near, near, low, high)
    whole.set_title("all methods; those in the corner are named on the right")
    corner.set_title(f"those within {_ZOOM:g} points of the experts")
    for axis in (whole, corner):
        axis.axvline(experts[0], color="0.4", lw=1, ls=(0, (1, 2)), zorder=1)
        axis.axhline(experts[1], color="0.4", lw=1, ls=(0, (1, 2)), zorder=1)
        for side, label in (("a", axis.set_xlabel), ("b", axis.set_ylabel)):
            network = report["networks"][side]
            loss = network.get("measure") == "loss"
            what = "1 / perplexity" if loss else "accuracy"
            label(f"{what} on {network['task']}, the task of {side} (test, %)")
        axis.grid(alpha=0.2)
    handles = {text: h for h, text in zip(*whole.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False
    )
    write_picture(figure, file)


def _gap(row: dict[str, Any], experts: list[float]) -> float:
    """Return the worst drop of a row below the experts, in percentage points."""
    a, b = (float(e - 100 * row["test"][s]) for e, s in zip(experts, "ab", strict=True))
    return max(a, b)


def _draw(
    axis: Any,
    rows: list[dict[str, Any]],
    shown: list[dict[str, Any]],
    named: list[dict[str, Any]],
    low: list[float],
    high: list[float],
) -> None:
    """Draw the paths of all rows, the points of some, and the names of some of those."""
    axis.set_xlim(low[0], high[0])
    axis.set_ylim(low[1], high[1])
    curved = [row for row in rows if row["curve"]]
    for k, row in enumerate(curved):
        color, line, _ = STYLES[k % len(STYLES)]
        xs, ys = ([100 * point[side] for point in row["curve"]] for side in "ab")
        label = f"path of {row['name']}"
        axis.plot(xs, ys, line, color=color, lw=1.3, alpha=0.8, zorder=2, label=label)
    for row in shown:
        x, y = (100 * row["test"][side] for side in "ab")
        group, marker, grey = _LOOKS[row["group"]]
        axis.plot(
            [x], [y], marker, color=grey, mec="black", mew=0.7, ms=10 if marker == "*" else 7,
            ls="", zorder=4, label=group,
        )  # fmt: skip

    def place(row: dict[str, Any]) -> tuple[float, float]:
        x, y = (
            (100 * row["test"][side] - least) / (most - least)
            for side, least, most in zip("ab", low, high, strict=True)
        )
        return x, y

    place_names(
        axis,
        [(row["name"], place(row)) for row in named],
        [place(row) for row in shown if row not in named],
    )
