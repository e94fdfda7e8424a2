"""The two networks themselves."""

from __future__ import annotations

from geomerge.comparison.context import Context
from geomerge.comparison.registry import Found, method


@method("a", "networks", "the first network, the expert of its task")
def network_a(context: Context) -> Found:
    """Return network a as it is."""
    return Found(context.a.w)


@method("b", "networks", "the second network, the expert of its task")
def network_b(context: Context) -> Found:
    """Return network b as it is."""
    return Found(context.b.w)
