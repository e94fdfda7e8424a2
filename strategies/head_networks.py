"""Networks of a multi-head model of Avalanche: one for each task label."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from geomerge.networks.network import Network
from geomerge.networks.wrappers import without_graph

__all__ = ["HeadNetworks"]


class _HeadView(nn.Module):
    """Model as a function of the inputs of one task.

    Args:
        model: Model of Avalanche.
        head: Task label; None for a model that takes none.
    """

    def __init__(self, model: nn.Module, head: int | None) -> None:
        super().__init__()
        self.model = model
        self._head = head

    def forward(
        self,
        x: Tensor,  # (B, ...)
    ) -> Tensor:  # (B, m)
        """Return the logits."""
        out: Tensor = self.model(x) if self._head is None else self.model(x, self._head)
        return out


class HeadNetworks:
    """Networks of a strategy's model, one for the inputs of each head, made once.

    Args:
        model: The model, which is copied.
        device: Device that computes.
    """

    def __init__(self, model: nn.Module, device: Any) -> None:
        self._model = copy.deepcopy(model, without_graph(model))
        self._device = device
        self._made: dict[int | None, Network] = {}

    def __call__(self, head: int | None) -> Network:
        """Return the network with the outputs of a head."""
        if head not in self._made:
            # Which weights may move is said to the merge; statistics are measured again.
            self._made[head] = Network(_HeadView(self._model, head), self._device).holding(())
        return self._made[head]
