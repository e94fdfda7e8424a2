"""Weight matching (Git Re-Basin, Ainsworth et al. 2023) and REPAIR (Jordan et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.alignment import align_weights
from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, method
from geomerge.data.batchnorm import has_statistics, re_estimate

__all__ = ["matched"]


def matched(context: Context) -> Tensor:  # (n,)
    """Return b with its units permuted to be near a's weights.

    Raises:
        NotApplicableError: If heads were widened.
        OptionError: If the network's units cannot be traced.
    """
    if context.space.head != "shared":
        raise NotApplicableError(
            "is made here for a shared head: widened ones hold rows of the other network, which "
            "would take part in the matching of units; give `head` as 'shared'"
        )
    assert context.a.task is not None, "a comparison has both tasks"
    example = context.a.task.select.inputs.batch(slice(0, 2))
    permuted, _ = align_weights(
        context.network, context.a.weights, context.b.weights, seed=context.seed, example=example
    )
    return permuted


@method(
    "weight-matching",
    "matching",
    "b's units permuted to match a's weights (Git Re-Basin), best point of the line",
)
def weight_matching(context: Context) -> MethodResult:
    """Permute b, then pick the best point of the line, with interpolated running statistics."""
    b = matched(context)
    t, w = context.pick_share(lambda t: torch.lerp(context.a.weights, b, t))
    return MethodResult(w, chosen={"t": t})


@method("repair", "matching", "weight matching, with BatchNorm statistics measured again (REPAIR)")
def repair(context: Context) -> MethodResult:
    """Permute b, and pick the best point of the line with statistics of both tasks' inputs."""
    if not has_statistics(context.network):
        raise NotApplicableError(
            "the network has no BatchNorm statistics to measure again: see weight-matching"
        )
    inputs = context.inputs(context.a, context.b)
    a, b = context.a.weights, matched(context)
    t, w = context.pick_share(
        lambda t: re_estimate(context.network, torch.lerp(a, b, t), inputs, context.seed)
    )
    return MethodResult(w, inputs=("a", "b"), chosen={"t": t})
