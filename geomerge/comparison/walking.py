"""The walks of ``geomerge merge`` up to their pick, without the legs that close a path."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from geomerge.comparison.context import CURVE, Context
from geomerge.comparison.registry import MethodResult
from geomerge.merging.candidates import best_candidate, pick_candidates, walk_stage
from geomerge.merging.joint import round_samples
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import plan_merge
from geomerge.merging.walks import Walker

__all__ = ["walk_and_pick"]


def walk_and_pick(context: Context, options: MergeOptions, title: str = "") -> MethodResult:
    """Walk once for every damping that the options leave open, and pick as a merge does.

    Args:
        context: The case.
        options: Of the walk, with a preset.
        title: Put before the walks' names.

    Returns:
        The point picked and the walk's points up to it; what data was used, and how many samples
        the steps took, the metric's own not counted.

    Raises:
        OptionError: If the preset needs what is not there.
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
