"""The joint walk and the sketch walk of a merge, up to the picked point."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from geomerge.comparison.context import CURVE, Context
from geomerge.comparison.registry import MethodResult, method
from geomerge.merging.candidates import best_candidate, pick_candidates, walk_stage
from geomerge.merging.joint import joint_samples, round_samples
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import plan_merge
from geomerge.merging.walks import Walker
from geomerge.metrics.sketch import INPUTS

__all__ = ["walk_and_pick"]


def walk_and_pick(context: Context, options: MergeOptions, title: str = "") -> MethodResult:
    """Walk once for every damping that the options leave open, and pick as a merge does.

    Args:
        context: Networks and tasks to merge.
        options: Options of the walk, with a preset.
        title: Text before the walks' names in progress reports.

    Returns:
        The point picked and the walk's points up to it; the data used, and the number of samples
        that the steps took, those of the metric not counted.

    Raises:
        OptionError: If data that the preset needs is missing.
        NumericalError: If the walk diverges.
    """
    sides = context.sides
    plan = plan_merge(sides, options)
    (stage,) = plan.stages
    walker = Walker(sides, options)
    with TemporaryDirectory() as folder:
        walked = walk_stage(
            sides, plan, stage, plan.begin(sides), walker, options, Path(folder) / "walk",
            context.on_progress, title,
        )  # fmt: skip
        candidates = pick_candidates(walked, context.rule)
        best = best_candidate(candidates, context.rule)
        marks = [step for step, _ in best.leg.marks if step < best.step]
        curve = [best.leg.weights(step) for step in marks[:: max(1, len(marks) // CURVE)]]
        w = context.settled(best.leg.weights(best.step))
    taken = sum(len(candidate.steps) for candidate in candidates)
    chosen = ({"mu": best.damping} if best.damping else {}) | {"step": float(best.step)}
    return MethodResult(
        w,
        inputs=tuple(side.name for side in plan.walked_on),
        sketches=tuple(side.name for side in stage.kept),
        samples=taken // len(stage.learned) * round_samples(stage.learned),
        chosen=chosen,
        curve=[*curve, w],
    )


@method(
    "joint-walk", "walks", "from the mean toward both functions in the metric of both, no labels"
)
def joint_walk(context: Context) -> MethodResult:
    """Walk between both networks with inputs of both tasks."""
    context.inputs(context.a, context.b)
    result = walk_and_pick(context, replace(context.options, preset="joint"))
    return replace(result, samples=joint_samples(context.sides, context.options))


@method("sketch-walk", "walks", "from b, kept by its sketch, toward a's function, no labels")
def sketch_walk(context: Context) -> MethodResult:
    """Walk from one network in the metric of its sketch, with inputs of the other's task."""
    result = walk_and_pick(context, replace(context.options, preset="sketch"))
    kept = [side for side in context.sides if side.name in result.sketches]
    if any(side.sketched_now for side in kept):  # measured here, on inputs
        taken = sum(min(INPUTS, len(x)) for x in context.inputs(*kept))
        return replace(result, inputs=("a", "b"), sketches=(), samples=result.samples + taken)
    return result
