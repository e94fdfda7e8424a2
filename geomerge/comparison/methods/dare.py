"""DARE (Yu et al. 2024): task vectors thinned at random and rescaled, then added."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.methods.task_vectors import pick_scale, task_arithmetic
from geomerge.comparison.registry import MethodResult, method

__all__ = ["drop_and_rescale"]

DROPPED = 0.9  # share of the entries, as in the paper


def drop_and_rescale(
    vector: Tensor,  # (n,)
    generator: torch.Generator,
    dropped: float = DROPPED,
) -> Tensor:  # (n,)
    """Return a task vector with random entries zero, the others divided by the share that stays.

    Args:
        vector: Task vector.
        generator: Generator of the draws.
        dropped: Share of the entries that become zero.
    """
    stays = torch.rand(len(vector), generator=generator).to(vector.device) >= dropped
    return vector * stays / (1 - dropped)


@method("dare", "weights", "task vectors of which a tenth stays at random, rescaled, added (DARE)")
def dare_networks(context: Context) -> MethodResult:
    """Add both thinned task vectors to the ancestor, at the best scale."""

    def merged(base: Tensor, scale: float) -> Tensor:
        generator = torch.Generator().manual_seed(context.seed)
        vectors = [drop_and_rescale(e.weights - base, generator) for e in (context.a, context.b)]
        return task_arithmetic(base, [base + vector for vector in vectors], scale)

    return pick_scale(context, merged)
