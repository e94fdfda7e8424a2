"""The joint walk of ``geomerge merge``."""

from __future__ import annotations

from dataclasses import replace

from geomerge.comparison.context import Context
from geomerge.comparison.registry import MethodResult, method
from geomerge.comparison.walking import walk_and_pick
from geomerge.merging.joint import joint_samples


@method(
    "joint-walk", "walks", "from the mean toward both functions in the metric of both, no labels"
)
def joint_walk(context: Context) -> MethodResult:
    """Walk between both networks with inputs of both tasks."""
    context.inputs(context.a, context.b)
    found = walk_and_pick(context, replace(context.options, preset="joint"))
    return replace(found, samples=joint_samples(context.sides, context.options))
