"""Weight matching, the straight line, and statistics measured anew (REPAIR, Jordan et al. 2023)."""

from __future__ import annotations

import torch

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.methods.weight_matching import matched
from geomerge.comparison.registry import MethodResult, method
from geomerge.data.batchnorm import has_statistics, re_estimate


@method("repair", "matching", "weight matching, with BatchNorm statistics measured anew (REPAIR)")
def repair(context: Context) -> MethodResult:
    """Permute b, and pick the best point of the line with statistics of both tasks' inputs."""
    if not has_statistics(context.network):
        raise NotApplicableError(
            "the network has no BatchNorm statistics to measure anew: see weight-matching"
        )
    inputs = context.inputs(context.a, context.b)
    b = matched(context)
    t, w = context.pick_share(
        lambda t: re_estimate(context.network, torch.lerp(context.a.w, b, t), inputs, context.seed)
    )
    return MethodResult(w, inputs=("a", "b"), chosen={"t": t})
