"""Weight matching (Git Re-Basin, Ainsworth et al. 2023), then the straight line."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.alignment import align
from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, method

__all__ = ["matched"]


def matched(context: Context) -> Tensor:  # (n,)
    """Return b with its units permuted to be near a's weights.

    Raises:
        NotApplicableError: If heads were widened.
        OptionError: If the network's units cannot be traced.
    """
    if context.sides.head != "shared":
        raise NotApplicableError(
            "is made here for a shared head: widened ones hold rows of the other network, which "
            "speak for its order of units; use --head shared"
        )
    assert context.a.task is not None, "a comparison has both tasks"
    example = context.a.task.select.inputs.batch(slice(0, 2))
    found, _ = align(context.network, context.a.w, context.b.w, seed=context.seed, example=example)
    return found


@method(
    "weight-matching",
    "matching",
    "b's units permuted to match a's weights (Git Re-Basin), best point of the line",
)
def weight_matching(context: Context) -> MethodResult:
    """Permute b, then pick the best point of the line, running statistics as they come."""
    b = matched(context)
    t, w = context.pick_share(lambda t: torch.lerp(context.a.w, b, t))
    return MethodResult(w, chosen={"t": t})
