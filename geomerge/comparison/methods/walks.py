"""Joint walk and sketch walk of a merge, up to the picked point."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from geomerge.comparison.context import CURVE, Context
from geomerge.comparison.registry import MethodResult, method
from geomerge.merging.choice import choose_preset
from geomerge.merging.joint_training import joint_samples, round_samples
from geomerge.merging.options import MergeOptions
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.stages import walk_plan
from geomerge.metrics.sketch import INPUTS
from geomerge.options import replace_options

__all__ = ["walk_and_pick"]


def walk_and_pick(context: Context, options: MergeOptions, title: str = "") -> MethodResult:
    """Walk once for each candidate damping, and pick as in a merge.

    Args:
        context: Context of the comparison.
        options: Options of the walk, including a preset.
        title: Prefix of the walks' names in progress reports.

    Returns:
        Result with the picked point, the walk's points up to it, the data used, and the number of
        samples of the steps, without those of the metric.

    Raises:
        OptionError: If data required by the preset are missing.
        NumericalError: If the walk diverges in its first step.
    """
    preset = choose_preset(replace(context.prepared, options=options))
    monitor = Monitor(context.space, context.progress)
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), monitor, preset.prepared.points, title=title)
        (picked,) = walk_plan(preset, context.rule, recorder)
        best = picked.chosen
        marks = [step for step, _ in best.leg.marks if step < best.step]
        curve = [best.leg.weights(step) for step in marks[:: max(1, len(marks) // CURVE)]]
        w = context.settled(best.leg.weights(best.step))
    stage = picked.stage
    taken = sum(len(candidate.steps) for candidate in picked.candidates)
    chosen = ({"mu": best.damping} if best.damping else {}) | {"step": float(best.step)}
    return MethodResult(
        w,
        inputs=tuple(expert.name for expert in preset.walked_on),
        sketches=tuple(expert.name for expert in stage.kept),
        samples=taken // len(stage.learned) * round_samples(stage.learned),
        chosen=chosen,
        curve=[*curve, w],
    )


@method(
    "joint-walk", "walks", "walk toward both functions in both metrics, no labels but for picks"
)
def joint_walk(context: Context) -> MethodResult:
    """Walk between both networks with inputs of both tasks."""
    context.inputs(context.a, context.b)
    result = walk_and_pick(context, replace_options(context.options, preset="joint"))
    return replace(result, samples=joint_samples(context.space, context.options.walk.steps))


@method("sketch-walk", "walks", "walk from b, in its metric, toward a's function, no labels")
def sketch_walk(context: Context) -> MethodResult:
    """Walk from one network in the metric of its sketch, with inputs of the other's task."""
    result = walk_and_pick(context, replace_options(context.options, preset="sketch"))
    kept = [expert for expert in context.space if expert.name in result.sketches]
    if any(expert.name in context.prepared.sketched for expert in kept):  # measured here on inputs
        taken = sum(min(INPUTS, len(x)) for x in context.inputs(*kept))
        return replace(result, inputs=("a", "b"), sketches=(), samples=result.samples + taken)
    return result
