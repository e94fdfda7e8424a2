"""Elastic weight consolidation (Kirkpatrick et al. 2017)."""

from __future__ import annotations

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.descent import BATCH, fine_tuned
from geomerge.comparison.fisher import FISHER_INPUTS, diagonal_fisher
from geomerge.comparison.registry import MethodResult, method

LAMBDAS = (1.0, 10.0, 100.0, 1000.0)


@method("ewc", "training", "b fine-tuned on a's labels, held by b's diagonal Fisher (EWC)")
def ewc(context: Context) -> MethodResult:
    """Fine-tune b with each lambda on an equal share of the budget, and pick the best."""
    a, b = context.a, context.b
    split = context.labelled(a)
    (inputs,) = context.inputs(b)
    measured = min(FISHER_INPUTS, len(inputs))
    each = (context.budget - measured) // len(LAMBDAS)
    if each < BATCH:
        raise NotApplicableError(
            f"needs a budget of {measured + len(LAMBDAS) * BATCH} samples, got {context.budget}; "
            "give more with --budget"
        )
    fisher = diagonal_fisher(b.network, b.w, inputs, context.seed)
    found = [
        fine_tuned(a.network, b.w, split, each, held=strength * fisher, seed=context.seed)
        for strength in LAMBDAS
    ]
    best, w = context.pick(len(found), lambda k: context.settled(found[k][0]))
    return MethodResult(
        w,
        inputs=("a", "b"),
        labels=("a",),
        samples=measured + sum(samples for _, samples in found),
        chosen={"lambda": LAMBDAS[best]},
    )
