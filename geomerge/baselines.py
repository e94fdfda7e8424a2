"""What a user would try instead of a walk in a metric, as rows of weights to pick from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from geomerge.network import Network
from geomerge.tasks import Split

__all__ = ["fine_tune", "straight_line"]


def straight_line(
    a: Tensor,  # (n,)
    b: Tensor,  # (n,)
    points: int = 41,
) -> list[Tensor]:
    """Return evenly spaced points of the straight line from a to b, both ends included."""
    return [torch.lerp(a, b, i / (points - 1)) for i in range(points)]


def fine_tune(
    network: Network,
    start: Tensor,  # (n,)
    split: Split,
    *,
    steps: int,
    learning_rate: float = 0.02,
    batch: int = 256,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Fine-tune with labels by plain gradient descent, yielding the weights after each step.

    Args:
        network: The network.
        start: Where to start.
        split: Labelled examples.
        steps: How many.
        learning_rate: Constant.
        batch: Examples per step, drawn with replacement.
        seed: Of the draws.

    Yields:
        Weights, shape (n,).
    """
    w = start.clone()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(len(split.labels), (batch,), generator=generator)
        loss_of = partial(torch.nn.functional.cross_entropy, target=split.labels[index])
        _, gradient = network.gradient(w, split.inputs.batch(index), loss_of)
        w = w - learning_rate * gradient
        yield w
