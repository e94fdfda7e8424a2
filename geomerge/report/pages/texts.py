"""Numbers of a page as text: percents, points, intervals, comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from geomerge.evaluation.measures import worded
from geomerge.report.schema import Count

__all__ = [
    "better_by", "drop_unit", "interval", "measure_of", "number", "percent", "points", "shown",
]  # fmt: skip


_UNKNOWN = "-"


def percent(value: float | None) -> str:
    """Return a share as percent with two digits."""
    return _UNKNOWN if value is None else f"{100 * value:.2f} %"


def measure_of(network: Mapping[str, Any]) -> str:
    """Return what a network of a report is measured by, ``"accuracy"`` or ``"loss"``."""
    measure: str = network.get("measure", "accuracy")
    return measure


def shown(value: float | None, network: Mapping[str, Any]) -> str:
    """Return a score on the task of a network of a report, as percent or as a perplexity."""
    return _UNKNOWN if value is None else worded(value, measure_of(network), 2)


def points(value: float | None) -> str:
    """Return a difference of shares in percentage points."""
    return _UNKNOWN if value is None else f"{100 * value:.1f}"


def drop_unit(networks: Iterable[Mapping[str, Any]]) -> str:
    """Return the unit of a worst drop: percentage points; "%" of a rise where there is a loss."""
    return "%" if any(measure_of(network) == "loss" for network in networks) else "points"


def number(value: float | None) -> str:
    """Return a number with four digits."""
    return _UNKNOWN if value is None else f"{value:.4g}"


def interval(counted: Count | None) -> str:
    """Return a confidence interval and the number of examples that it was computed from."""
    if counted is None:
        return ""
    if "interval" not in counted:
        return f"{counted['of']} tokens of test texts"
    low, high = counted["interval"]
    return f"95 % interval {100 * low:.2f} to {100 * high:.2f}, {counted['of']} test examples"


def better_by(name: str, ours: float, theirs: float, unit: str = "points") -> str:
    """Return a sentence that compares two worst drops below the experts.

    Args:
        name: Name of the other method.
        ours: Worst drop of this one.
        theirs: Worst drop of the other one.
        unit: Unit of both, as :func:`drop_unit` returns it.
    """
    gap = 100 * (theirs - ours)
    if abs(gap) < 0.05:
        return f"As good as {name}."
    word = "Better" if gap > 0 else "Worse"
    worst = "worst drop" if unit == "points" else "worst rise"
    return f"{word} than {name} by {abs(gap):.1f} {unit} ({worst} there: {100 * theirs:.1f})."
