"""The two networks themselves."""

from __future__ import annotations

from geomerge.comparison.context import Context
from geomerge.comparison.registry import MethodResult, method


@method("a", "networks", "the first network, the expert of its task")
def network_a(context: Context) -> MethodResult:
    """Return network a as it is."""
    return MethodResult(context.a.w)


@method("b", "networks", "the second network, the expert of its task")
def network_b(context: Context) -> MethodResult:
    """Return network b as it is."""
    return MethodResult(context.b.w)
