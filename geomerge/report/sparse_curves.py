"""Curves of accuracy and functional change along sparsifications and reconfigurations.

As in figures 2A and 2D of arXiv 2012.09605, each walk is compared with the naive network: the dense
network with the same weights at zero, without compensation.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from geomerge.report.picture import STYLES, write_picture

__all__ = ["draw_moves", "draw_sparsity"]

_WALK, _NAIVE = STYLES[:2]
_TICKS = (1, 2, 5)  # ticks in each power of ten of the share of weights left
_FINE_TICKS = (1, 2, 3, 4, 5, 6, 7, 8, 9)  # ticks if less than a power of ten is shown
_WIDE = 10.0  # ratio of largest to smallest change from which the scale is logarithmic
_NAME = 16  # characters of a configuration's name in one line
_RING: dict[str, Any] = {"color": "black", "mfc": "none", "ms": 10, "mew": 1.5, "ls": ""}


def draw_sparsity(report: dict[str, Any], file: Path) -> None:
    """Draw ``curves.png`` of a sparsification: accuracy and functional change along the walk.

    Args:
        report: Content of ``report.json``.
        file: Path of the picture.
    """
    from matplotlib.figure import Figure

    curve = report["curve"]
    dense = 100 * report["dense_held_out"]
    structured = bool(report["removed"])
    xs = [p["removed"] if structured else 100 * (1 - p["zeros"]) for p in curve]
    figure = Figure(figsize=(7, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.4])
    _accuracy(upper, xs, curve)
    upper.axhline(dense, color="0.35", lw=1, ls=":", label=f"dense network: {dense:.1f} %")
    _change(lower, xs, [p["drift"] for p in curve])
    last = 100 * curve[-1]["select"]
    gone = f"{xs[-1]} units removed" if structured else f"{xs[-1]:.3g} % left"
    upper.plot(xs[-1:], [last], "o", **_RING, label=f"end: {gone}, {last:.1f} %")
    lower.plot(xs[-1:], [curve[-1]["drift"]], "o", **_RING)
    for axis in (upper, lower):
        axis.grid(alpha=0.25)
    if structured:
        lower.set_xlabel("units removed")
    else:
        _left(lower, xs)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    write_picture(figure, file)


def draw_moves(report: dict[str, Any], file: Path) -> None:
    """Draw ``curves.png`` of a reconfiguration: accuracy along all moves in order.

    Args:
        report: Content of ``report.json``.
        file: Path of the picture.
    """
    from matplotlib.figure import Figure

    moves = report["configurations"]
    curve = [point for one in moves for point in one["curve"]]
    xs = [k + point["t"] for k, one in enumerate(moves) for point in one["curve"]]
    dense = 100 * report["dense_held_out"]
    figure = Figure(figsize=(max(7.0, 1.5 * len(moves)), 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    _accuracy(upper, xs, curve)
    upper.axhline(dense, color="0.35", lw=1, ls=":", label=f"dense network: {dense:.1f} %")
    lower.plot(xs, [point["removed"] for point in curve], color="0.2", marker=".", ms=4)
    for axis in (upper, lower):
        for k in range(len(moves) + 1):
            axis.axvline(k, color="0.35", lw=1)
        axis.grid(alpha=0.25, axis="y")
    reached = [curve[0]["select"], *(one["curve"][-1]["select"] for one in moves)]
    for k, value in enumerate(reached):
        upper.plot([k], [100 * value], "o", **_RING)
        upper.annotate(
            f"{100 * value:.1f} %",
            (k, 100 * value),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            bbox={"fc": "white", "ec": "none", "pad": 1, "alpha": 0.85},
        )
    upper.margins(y=0.12)  # space for the numbers above the highest points
    lower.set_xticks(range(len(moves) + 1), ["start", *map(_tick, moves)])
    lower.set_ylim(bottom=0)
    lower.set_ylabel("units gone")
    lower.set_xlabel("share of each move's path length")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    write_picture(figure, file)


def _accuracy(axis: Any, xs: list[float], curve: list[dict[str, Any]]) -> None:
    """Draw the accuracies of a walk and of the naive network."""
    for style, key, label in (
        (_WALK, "select", "walk"),
        (_NAIVE, "naive", "same mask, no compensation"),
    ):
        color, line, marker = style
        values = [100 * point[key] for point in curve]
        axis.plot(xs, values, line, color=color, marker=marker, ms=3.5, label=label)
    axis.set_ylabel("accuracy, selection split (%)")


def _change(axis: Any, xs: list[float], changes: list[float]) -> None:
    """Draw a functional change; on a log scale the zeros are left out."""
    from matplotlib.ticker import LogLocator, NullLocator

    color, _, marker = _WALK
    shown = [(x, v) for x, v in zip(xs, changes, strict=True) if v > 0]
    wide = bool(shown) and max(v for _, v in shown) >= _WIDE * min(v for _, v in shown)
    points = shown if wide else [*zip(xs, changes, strict=True)]
    axis.plot(*zip(*points, strict=True), color=color, marker=marker, ms=3.5)
    if wide:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.set_ylim(bottom=0)
    axis.set_ylabel("functional change\nfrom the start")


def _left(axis: Any, xs: list[float]) -> None:
    """Make an axis of the share of weights left: logarithmic and falling."""
    from matplotlib.ticker import FixedLocator, NullLocator

    fewest = min((x for x in xs if x > 0), default=1.0)
    margin = max((100 / fewest) ** 0.04, 1.02)
    steps = _TICKS if fewest < 10 else _FINE_TICKS
    ticks = [s * 10.0**k for k in range(-6, 3) for s in steps]
    axis.set_xscale("log")
    axis.set_xlim(100 * margin, fewest / margin)
    axis.xaxis.set_major_locator(FixedLocator([t for t in ticks if fewest / margin <= t <= 100]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("weights left (%, log scale)")


def _tick(move: dict[str, Any]) -> str:
    name = textwrap.fill(move["name"], _NAME)
    return f"{name}\n({move['epochs']:.2g} epochs)"
