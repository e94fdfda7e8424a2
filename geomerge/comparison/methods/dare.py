"""DARE (Yu et al. 2024): task arithmetic with random entries dropped and the rest rescaled."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.methods.task_vectors import pick_scale, task_arithmetic
from geomerge.comparison.registry import MethodResult, method

__all__ = ["drop_and_rescale"]

DROPPED = 0.9  # share of dropped entries, as in the paper


def drop_and_rescale(
    vector: Tensor,  # (n,)
    generator: torch.Generator,
    dropped: float = DROPPED,
) -> Tensor:  # (n,)
    """Set random entries of a task vector to zero and divide the others by 1 - ``dropped``.

    Args:
        vector: Task vector.
        generator: Generator of random numbers.
        dropped: Share of entries to set to zero, in [0, 1).
    """
    stays = torch.rand(len(vector), generator=generator).to(vector.device) >= dropped
    return vector * stays / (1 - dropped)


@method("dare", "weights", "sum of task vectors with 90 % of entries dropped at random (DARE)")
def dare_networks(context: Context) -> MethodResult:
    """Add both sparse task vectors to the ancestor, at the best scale."""

    def merged(base: Tensor, scale: float) -> Tensor:
        generator = torch.Generator().manual_seed(context.seed)
        vectors = [drop_and_rescale(e.weights - base, generator) for e in (context.a, context.b)]
        return task_arithmetic(base, [base + vector for vector in vectors], scale)

    return pick_scale(context, merged)
