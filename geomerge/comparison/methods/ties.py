"""TIES merging (Yadav et al. 2023): trim, elect signs, merge what agrees."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.methods.task_arithmetic import pick_scale
from geomerge.comparison.registry import MethodResult, method

__all__ = ["ties", "trim"]

KEPT = 0.2  # share of each task vector that trimming leaves, as in the paper


def trim(
    vector: Tensor,  # (n,)
    kept: float = KEPT,
) -> Tensor:  # (n,)
    """Return a task vector with only the largest entries, the others zero.

    Args:
        vector: The task vector.
        kept: Share of the entries that stay.
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
    """Return base + scale * mean, entry by entry, of the trimmed task vectors of elected sign.

    Args:
        base: The common ancestor.
        networks: What was fine-tuned from it.
        scale: Of the merged task vector.
        kept: Share of each task vector that trimming leaves.
    """
    vectors = torch.stack([trim(w - base, kept) for w in networks])
    agreeing = (vectors.sign() == vectors.sum(dim=0).sign()) & (vectors != 0)
    mean = (vectors * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
    return base + scale * mean


@method("ties", "weights", "task vectors trimmed to a fifth, merged where their signs agree (TIES)")
def ties_networks(context: Context) -> MethodResult:
    """Merge both task vectors, at the best scale; running statistics are not trimmed."""
    n = context.network.n_parameters
    networks = [context.a.w[:n], context.b.w[:n]]

    def merged(base: Tensor, scale: float) -> Tensor:
        return torch.cat([ties(base[:n], networks, scale), base[n:]])

    return pick_scale(context, merged)
