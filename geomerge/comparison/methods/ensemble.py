"""Both networks, asked for each answer."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, Predictor, method
from geomerge.merging.sides import Side

__all__ = ["mean_of_softmax"]


def mean_of_softmax(*weights: Tensor) -> Predictor:
    """Return what predicts the mean of several networks' probabilities.

    Args:
        weights: Of each network, shape (n,).
    """

    def predict(side: Side, x: Tensor) -> Tensor:
        parts = [side.network.logits(w, x).softmax(dim=1) for w in weights]
        return torch.stack(parts).mean(dim=0)

    return predict


@method(
    "ensemble", "networks", "mean of both networks' probabilities: two networks, twice the cost"
)
def ensemble(context: Context) -> MethodResult:
    """Return the mean of both networks' probabilities as a predictor."""
    if context.sides.head == "separate":
        raise NotApplicableError(
            "with separate heads the task is known, and the network trained for it answers alone"
        )
    return MethodResult(mean_of_softmax(context.a.w, context.b.w))
