"""The mean of the weights."""

from __future__ import annotations

from geomerge.comparing.context import Context
from geomerge.comparing.registry import Found, method


@method("average", "weights", "mean of the weights")
def average(context: Context) -> Found:
    """Return the mean of both networks."""
    return Found(context.settled(context.sides.middle()))
