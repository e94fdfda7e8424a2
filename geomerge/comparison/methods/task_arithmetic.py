"""Task arithmetic (Ilharco et al. 2023): what each network learned is added to their ancestor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, method

__all__ = ["SCALES", "pick_scale", "task_arithmetic"]

SCALES = tuple(k / 10 for k in range(1, 16))


def task_arithmetic(
    base: Tensor,  # (n,)
    networks: list[Tensor],  # (n,) each
    scale: float,
) -> Tensor:  # (n,)
    """Return base + scale * sum of (network - base)."""
    return base + scale * torch.stack([w - base for w in networks]).sum(dim=0)


def pick_scale(context: Context, merged: Callable[[Tensor, float], Tensor]) -> MethodResult:
    """Pick the best of :data:`SCALES`; running statistics are the networks' mean.

    Args:
        context: The case.
        merged: Given the ancestor, shape (n,), and a scale, returns the weights.

    Raises:
        NotApplicableError: If there is no ancestor.
    """
    base = context.base
    if base is None:
        raise NotApplicableError(
            "needs the network that both were fine-tuned from; name it with --base, if there is one"
        )
    mean = context.sides.middle()

    def point(k: int) -> Tensor:
        w = context.buffers_of(merged(base, SCALES[k]), mean)
        return context.settled(w)

    best, w = context.pick(len(SCALES), point)
    return MethodResult(w, chosen={"scale": SCALES[best]})


@method("task-arithmetic", "weights", "sum of what each learned since their common ancestor")
def task_arithmetic_networks(context: Context) -> MethodResult:
    """Add both task vectors to the ancestor, at the best scale."""
    networks = [context.a.w, context.b.w]
    return pick_scale(context, lambda base, scale: task_arithmetic(base, networks, scale))
