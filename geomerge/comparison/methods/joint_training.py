"""Joint training of one network on the labels of both tasks."""

from __future__ import annotations

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, method
from geomerge.evaluation.measures import score
from geomerge.evaluation.plausibility import at_chance
from geomerge.merging.joint_training import NotTrainableError, train_jointly

__all__ = ["joint_training"]


@method(
    "joint-training", "training", "a new network of the same make, trained on both tasks' labels"
)
def joint_training(context: Context) -> MethodResult:
    """Train a new network on the mixed labelled data of both tasks with all samples."""
    for expert in context.space:
        context.labelled(expert)  # raises if a task's labels were not given
    try:
        w, samples = train_jointly(context.space, context.max_samples, context.seed)
    except NotTrainableError as error:
        raise NotApplicableError(str(error)) from error
    lost = [
        task.name
        for e in context.space
        if (task := e.task) is not None and at_chance(score(e.network, w, task.select), task.select)
    ]
    if lost:
        context.prepared.notes.append(
            f"joint training hardly trained: it answers {' and '.join(lost)} at chance and is no "
            "reference here; a larger `max_samples` gives it more examples"
        )
    return MethodResult(w, inputs=("a", "b"), labels=("a", "b"), samples=samples)
