"""Task vectors: task arithmetic (Ilharco et al. 2023) and TIES merging (Yadav et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, method

__all__ = ["SCALES", "ancestor_of", "pick_scale", "task_arithmetic", "ties", "trim"]

SCALES = tuple(k / 10 for k in range(1, 16))
KEPT = 0.2  # share of entries kept by trimming, as in the paper


def task_arithmetic(
    base: Tensor,  # (n,)
    networks: list[Tensor],  # (n,) each
    scale: float,
) -> Tensor:  # (n,)
    """Return base + scale * sum of (network - base)."""
    return base + scale * torch.stack([w - base for w in networks]).sum(dim=0)


def ancestor_of(context: Context) -> Tensor:  # (n,)
    """Return the weights of the common ancestor.

    Raises:
        NotApplicableError: If there is no ancestor.
    """
    if context.base is None:
        raise NotApplicableError(
            "needs the network that both were fine-tuned from; give it as `base`, if there is one"
        )
    return context.base


def pick_scale(context: Context, merged: Callable[[Tensor, float], Tensor]) -> MethodResult:
    """Pick the best of :data:`SCALES`, with averaged running statistics.

    Args:
        context: Networks and tasks to merge.
        merged: Function of the ancestor's weights and a scale that returns merged weights, shape
            (n,).

    Raises:
        NotApplicableError: If there is no ancestor.
    """
    base = ancestor_of(context)
    mean = context.space.middle()

    def point(k: int) -> Tensor:
        w = context.buffers_of(merged(base, SCALES[k]), mean)
        return context.settled(w)

    best, w = context.pick(len(SCALES), point)
    return MethodResult(w, chosen={"scale": SCALES[best]})


@method("task-arithmetic", "weights", "sum of both task vectors from their common ancestor")
def task_arithmetic_networks(context: Context) -> MethodResult:
    """Add both task vectors to the ancestor, at the best scale."""
    networks = [context.a.weights, context.b.weights]
    return pick_scale(context, lambda base, scale: task_arithmetic(base, networks, scale))


def trim(
    vector: Tensor,  # (n,)
    kept: float = KEPT,
) -> Tensor:  # (n,)
    """Set all but the largest entries of a task vector to zero.

    Args:
        vector: Task vector.
        kept: Share of kept entries, in (0, 1].
    """
    order = vector.abs().argsort(descending=True)[: round(kept * len(vector))]
    trimmed = torch.zeros_like(vector)
    trimmed[order] = vector[order]
    return trimmed


def ties(
    base: Tensor,  # (n,)
    networks: list[Tensor],  # (n,) each
    scale: float,
    kept: float = KEPT,
) -> Tensor:  # (n,)
    """Return base + scale * elementwise mean of trimmed task vectors with the elected sign.

    Args:
        base: Weights of the common ancestor.
        networks: Weights of the networks fine-tuned from it.
        scale: Factor of the merged task vector.
        kept: Share of entries kept by trimming.
    """
    vectors = torch.stack([trim(w - base, kept) for w in networks])
    agreeing = (vectors.sign() == vectors.sum(dim=0).sign()) & (vectors != 0)
    mean = (vectors * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
    return base + scale * mean


@method("ties", "weights", "task vectors trimmed to a fifth, merged where their signs agree (TIES)")
def ties_networks(context: Context) -> MethodResult:
    """Merge both task vectors at the best scale; running statistics are not trimmed."""
    n = context.network.n_parameters
    networks = [context.a.weights[:n], context.b.weights[:n]]

    def merged(base: Tensor, scale: float) -> Tensor:
        return torch.cat([ties(base[:n], networks, scale), base[n:]])

    return pick_scale(context, merged)
