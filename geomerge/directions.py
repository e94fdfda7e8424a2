"""Where a walk wants to go from a point: toward weights, or toward a function."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from geomerge.network import Network
from geomerge.tasks import Inputs

__all__ = ["TowardFunction", "log_probabilities"]


def log_probabilities(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    batch: int = 1000,
) -> Tensor:  # (N, m)
    """Return log softmax f(x, w) of all inputs."""
    return torch.cat([network.logits(w, x).log_softmax(dim=1) for x in inputs.batches(batch)])


class TowardFunction:
    """v = - grad_w D(w), D the mean KL(teacher || network) on the teacher's own inputs.

    Args:
        network: The network that walks.
        targets: The teacher's log-probabilities on all inputs, shape (N, m).
        inputs: Inputs of the teacher's manifold, in the same order; labels are never seen.
        batch: Inputs per gradient.
        seed: Of the order in which inputs come; every input is seen once before any comes again.
    """

    def __init__(
        self, network: Network, targets: Tensor, inputs: Inputs, batch: int, seed: int
    ) -> None:
        self._network = network
        self._inputs = inputs
        self._targets = targets
        self._order = _order(len(inputs), min(batch, len(inputs)), seed)

    def __call__(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return D on the next batch and v there, shape (n,)."""
        index = next(self._order)
        distance, gradient = self._network.gradient(
            w, self._inputs.batch(index), self._targets[index]
        )
        return distance, gradient.neg_()


def _order(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]
