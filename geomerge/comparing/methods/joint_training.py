"""Training on the labels of both tasks at once."""

from __future__ import annotations

from geomerge.architectures import create_network, recognise
from geomerge.comparing.context import Context, NotApplicableError
from geomerge.comparing.registry import Found, method
from geomerge.network import Network
from geomerge.training import train

_BATCH = 128  # of geomerge train


@method(
    "joint-training", "training", "a new network of the same make, trained on both tasks' labels"
)
def joint_training(context: Context) -> Found:
    """Train a new network on all labels, mixed, for as many samples as the budget allows."""
    a, b = context.a, context.b
    if context.sides.head != "shared":
        raise NotApplicableError("is trained here with a shared head only; use --head shared")
    splits = [context.labelled(a), context.labelled(b)]
    if splits[0].inputs.raw.shape[1:] != splits[1].inputs.raw.shape[1:]:
        raise NotApplicableError("needs inputs of one shape from both tasks, and theirs differ")
    architecture = a.checkpoint.meta.get("architecture") or recognise(a.checkpoint.weights)
    assert architecture is not None, "the networks were rebuilt from it"
    assert a.task is not None, "a comparison has both tasks"
    outputs = context.network.logits(a.w, splits[0].inputs.batch(slice(0, 1))).shape[1]
    fresh = Network(
        create_network(architecture, a.task.input_shape, outputs, context.seed),
        context.network.device,
    )
    if fresh.shapes != context.network.shapes:
        raise NotApplicableError(
            f"a new {architecture} has other widths than the networks, so that none can be trained"
        )
    count = sum(len(split.labels) for split in splits)
    batch = min(_BATCH, count)
    epochs = context.budget / batch / (count // batch)
    w = train(fresh, fresh.initial, splits, epochs=epochs, batch=batch, seed=context.seed)
    samples = int(epochs * (count // batch)) * batch
    return Found(w, inputs=("a", "b"), labels=("a", "b"), samples=samples)
