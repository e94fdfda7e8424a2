"""The straight line between the networks."""

from __future__ import annotations

from geomerge.comparison.context import CURVE, Context
from geomerge.comparison.registry import MethodResult, method
from geomerge.training import straight_line


@method("straight-line", "weights", "best point of the straight line from a to b")
def line(context: Context) -> MethodResult:
    """Pick the best point of the line."""
    a, b = context.a.w, context.b.w
    t, w = context.pick_on_line(a, b)
    return MethodResult(w, chosen={"t": t}, curve=straight_line(a, b, CURVE))
