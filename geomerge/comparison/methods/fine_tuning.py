"""Plain fine-tuning of b on a's task."""

from __future__ import annotations

from geomerge.comparison.context import Context
from geomerge.comparison.descent import fine_tuned
from geomerge.comparison.registry import MethodResult, method


@method("fine-tuning", "training", "b fine-tuned on a's labels to the end, b's task forgotten")
def fine_tuning(context: Context) -> MethodResult:
    """Fine-tune b on a's task for the whole budget."""
    split = context.labelled(context.a)
    w, samples = fine_tuned(
        context.a.network, context.b.w, split, context.budget, seed=context.seed
    )
    return MethodResult(w, inputs=("a",), labels=("a",), samples=samples)
