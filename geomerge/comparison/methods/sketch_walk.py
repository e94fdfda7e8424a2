"""The sketch walk of ``geomerge merge``."""

from __future__ import annotations

from dataclasses import replace

from geomerge.comparison.context import Context
from geomerge.comparison.registry import MethodResult, method
from geomerge.comparison.walking import walk_and_pick
from geomerge.metrics.sketch import INPUTS


@method("sketch-walk", "walks", "from b, kept by its sketch, toward a's function, no labels")
def sketch_walk(context: Context) -> MethodResult:
    """Walk from one network in the metric of its sketch, with inputs of the other's task."""
    found = walk_and_pick(context, replace(context.options, preset="sketch"))
    kept = [side for side in context.sides if side.name in found.sketches]
    if any(side.sketched_now for side in kept):  # made here, of inputs
        taken = sum(min(INPUTS, len(x)) for x in context.inputs(*kept))
        return replace(found, inputs=("a", "b"), sketches=(), samples=found.samples + taken)
    return found
