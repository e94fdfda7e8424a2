"""Numbers of a page as text: percents, points, intervals, comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geomerge.evaluation.measures import worded
from geomerge.report.schema import Count

__all__ = ["better_by", "interval", "measure_of", "number", "percent", "points", "shown"]


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


def better_by(name: str, ours: float, theirs: float) -> str:
    """Return a sentence that compares two worst drops below the experts, in points or percent."""
    gap = 100 * (theirs - ours)
    if abs(gap) < 0.05:
        return f"As good as {name}."
    word = "Better" if gap > 0 else "Worse"
    return f"{word} than {name} by {abs(gap):.1f} points (worst drop there: {100 * theirs:.1f})."
