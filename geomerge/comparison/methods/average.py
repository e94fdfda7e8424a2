"""The mean of the weights."""

from __future__ import annotations

from geomerge.comparison.context import Context
from geomerge.comparison.registry import Found, method


@method("average", "weights", "mean of the weights")
def average(context: Context) -> Found:
    """Return the mean of both networks."""
    return Found(context.settled(context.sides.middle()))
