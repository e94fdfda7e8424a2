"""In-place change of the weights of a model in training, and its evaluation afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.strategies.avalanche import PeriodicEval

__all__ = ["evaluate_again", "write"]


@torch.no_grad()
def write(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model's own tensors, to which optimizer and plugins refer.

    Args:
        model: Model to change.
        weights: Weights by name; tensors that are not named stay as they are.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in weights:
            tensor.copy_(weights[name])


def evaluate_again(strategy: Any) -> None:
    """Have the network evaluated at the end of the experience, if it is evaluated at all.

    Avalanche would not if the last epoch was evaluated, and a network that has been changed since
    would have no evaluation.

    Args:
        strategy: Strategy of Avalanche.
    """
    for plugin in strategy.plugins:
        if isinstance(plugin, PeriodicEval) and plugin.eval_every > -1:
            plugin.do_final = True
