"""The mean of the weights."""

from __future__ import annotations

from geomerge.comparison.context import Context
from geomerge.comparison.registry import MethodResult, method


@method("average", "weights", "mean of the weights")
def average(context: Context) -> MethodResult:
    """Return the mean of both networks."""
    return MethodResult(context.settled(context.sides.middle()))
