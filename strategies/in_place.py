"""Weights written into a model that Avalanche is training, and the evaluation that must follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor, nn

__all__ = ["evaluate_again", "write"]


@torch.no_grad()
def write(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model's own tensors, which optimiser and plugins hold on to.

    Args:
        model: The model.
        weights: By name; tensors that are not named stay as they are.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in weights:
            tensor.copy_(weights[name])


def evaluate_again(strategy: Any) -> None:
    """Have the network evaluated at the end of the experience, if it is evaluated at all.

    Where the last epoch was evaluated Avalanche would not, and a network that has been changed
    since would never be.
    """
    for plugin in strategy.plugins:
        if isinstance(plugin, PeriodicEval) and plugin.eval_every > -1:
            plugin.do_final = True
