"""Weight matching (Ainsworth et al. 2023), activation matching and REPAIR (Jordan et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, method
from geomerge.data.batchnorm import has_statistics, re_estimate
from geomerge.merging.aligning import align_experts
from geomerge.options import replace_options

__all__ = ["matched"]


def matched(context: Context, by: str = "weights") -> tuple[Tensor, Tensor]:  # (n,), (n,)
    """Return the weights of a, and those of b with its units permuted to match a.

    In a common head the rows of b's classes, which both networks have, are permuted as well.

    Args:
        context: Context of the comparison.
        by: Method of the alignment.

    Raises:
        OptionError: If the network's units cannot be traced, or none can be permuted.
    """
    options = replace_options(context.options, align=by)
    space, _ = align_experts(context.space, context.prepared.heads, options)
    a, b = space.experts
    return a.weights, b.weights


@method(
    "weight-matching",
    "matching",
    "b's units permuted to match a's weights (Git Re-Basin), best point of the line",
)
def weight_matching(context: Context) -> MethodResult:
    """Permute b, and pick the best point of the line with interpolated running statistics."""
    a, b = matched(context)
    t, w = context.pick_share(lambda t: torch.lerp(a, b, t))
    return MethodResult(w, chosen={"t": t})


@method("repair", "matching", "weight matching, with BatchNorm statistics measured again (REPAIR)")
def repair(context: Context) -> MethodResult:
    """Permute b, and pick the best point of the line with statistics of both tasks' inputs."""
    if not has_statistics(context.network):
        raise NotApplicableError(
            "the network has no BatchNorm statistics to measure again: see weight-matching"
        )
    return _line_with_statistics(context, "weights")


@method(
    "activation-matching",
    "matching",
    "b's units permuted to match a's activations, BatchNorm statistics measured again",
)
def activation_matching(context: Context) -> MethodResult:
    """Permute b by activations on both tasks' inputs, and pick the best point of the line."""
    return _line_with_statistics(context, "activations")


def _line_with_statistics(context: Context, by: str) -> MethodResult:
    inputs = context.inputs(context.a, context.b)
    a, b = matched(context, by)

    def point(t: float) -> Tensor:
        w = torch.lerp(a, b, t)
        if not has_statistics(context.network):
            return w
        return re_estimate(context.network, w, inputs, context.seed)

    t, w = context.pick_share(point)
    return MethodResult(w, inputs=("a", "b"), chosen={"t": t})
