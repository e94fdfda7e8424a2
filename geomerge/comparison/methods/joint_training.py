"""Joint training: one network trained on the labels of both tasks at once."""

from __future__ import annotations

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, method
from geomerge.merging.joint_training import NotTrainableError, train_jointly

__all__ = ["joint_training"]


@method(
    "joint-training", "training", "a new network of the same make, trained on both tasks' labels"
)
def joint_training(context: Context) -> MethodResult:
    """Train a new network on all labels, mixed, for as many samples as the budget allows."""
    for expert in context.space:
        context.labelled(expert)  # the comparison uses no labels of tasks that were not given
    try:
        w, samples = train_jointly(context.space, context.max_samples, context.seed)
    except NotTrainableError as error:
        raise NotApplicableError(str(error)) from error
    return MethodResult(w, inputs=("a", "b"), labels=("a", "b"), samples=samples)
