"""Mean weighted by both networks' Kronecker metrics, which minimises the predicted drift."""

from __future__ import annotations

from geomerge.comparison.context import Context
from geomerge.comparison.registry import MethodResult, method
from geomerge.merging.presets.sketches import mean_point
from geomerge.metrics.sketch import INPUTS

__all__ = ["kronecker_mean"]


@method("kronecker-mean", "activations", "mean weighted by both Kronecker metrics, no walk")
def kronecker_mean(context: Context) -> MethodResult:
    """Solve for the mean in the metrics of the sketches; missing sketches are measured."""
    made = [expert for expert in (context.a, context.b) if expert.sketch is None]
    samples = sum(min(INPUTS, len(x)) for x in context.inputs(*made))
    w = mean_point(context.prepared)
    return MethodResult(
        context.settled(w),
        inputs=tuple(expert.name for expert in made),
        sketches=tuple(e.name for e in (context.a, context.b) if e.sketch is not None),
        samples=samples,
    )
