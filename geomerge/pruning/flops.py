"""Parameter and FLOP counts of networks, also without some of their units."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from geomerge.networks.batches import Batch, as_batch, pass_to, take, to_device
from geomerge.networks.flops import flop_counter
from geomerge.networks.network import Network
from geomerge.pruning.parts import Role
from geomerge.pruning.units import Units

__all__ = ["Counts", "Sizes", "count"]


@dataclass(frozen=True)
class Counts:
    """Size of a network.

    Attributes:
        parameters: Number of trained parameters, without running statistics.
        flops: Floating-point operations per input, two per multiply-add of matrix products,
            convolutions and attention; elementwise operations and norms are not counted.
    """

    parameters: int
    flops: int


def count(module: nn.Module, example: tuple[int, ...] | Batch) -> Counts:
    """Count the parameters and the FLOPs of a network.

    Args:
        module: Network.
        example: Shape of one input, without the batch, or a batch whose first input is used.

    Returns:
        Counts, with the FLOPs of one input.

    Example:
        >>> from torch import nn
        >>> from geomerge.pruning.flops import count
        >>> count(nn.Linear(64, 10), (64,))
        Counts(parameters=650, flops=1280)
    """
    first = next(module.parameters())
    batch = as_batch(example)
    if batch is None:
        x: Batch = torch.zeros(1, *example, dtype=first.dtype, device=first.device)
    else:
        x = to_device(take(batch, slice(0, 1)), first.device)
    return Counts(sum(p.numel() for p in module.parameters()), _flops(module, x)[""])


def _flops(module: nn.Module, x: Batch) -> Counter[str]:
    """Return the FLOPs of one pass by name of the layer, with the total under ``""``."""
    with torch.no_grad(), flop_counter() as counter:
        pass_to(module, x)
    found: Counter[str] = Counter({"": counter.get_total_flops()})
    for name, operations in counter.get_flop_counts().items():
        layer = name.partition(".")[2]  # the first part is the network's class
        if layer:
            found[layer] += sum(operations.values())
    return found


class Sizes:
    """Counts of a network for given numbers of removed units.

    Args:
        network: Network.
        units: Sets of units, by :attr:`Units.layer`.
        example: Batch of inputs; the first is used.
    """

    def __init__(
        self,
        network: Network,
        units: Mapping[str, Units],
        example: Batch,  # (B, ...)
    ) -> None:
        self._units = {one.layer: one for one in units.values()}
        self._shapes = network.shapes
        flops = _flops(network.module, to_device(take(example, slice(0, 1)), network.device))
        self._flops = flops
        self._all = Counts(network.n_parameters, flops[""])

    def without(self, removed: Mapping[str, int]) -> Counts:
        """Return the counts without ``removed`` units of each set, by :attr:`Units.layer`."""
        lost: dict[str, Counter[int]] = defaultdict(Counter)
        for layer, number in removed.items():
            for part in self._units[layer].parts:
                if part.role is not Role.STATISTICS:
                    lost[part.tensor][part.dim] += number * part.indices.shape[1]
        parameters, flops = self._all.parameters, self._all.flops
        for tensor, entries in lost.items():
            shape = self._shapes[tensor]
            share = 1.0
            for dim, number in entries.items():
                share *= 1 - number / shape[dim]
            parameters -= round((1 - share) * shape.numel())
            if len(shape) > 1:
                flops -= round((1 - share) * self._flops[tensor.rpartition(".")[0]])
        return Counts(parameters, flops)
