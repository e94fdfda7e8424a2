r"""Which units cost least together: Optimal Brain Surgeon for groups, in the Kronecker metric.

Without a unit the layers that read it lose columns of their matrices W; the other columns make up
for it. In the metric :math:`A \otimes B` of such a layer that costs
:math:`\mathrm{tr}(B\,W_P [(A + \lambda)^{-1}_{PP}]^{-1} W_P')` (Hassibi & Stork 1993; Frantar &
Alistarh 2022 with B = I): the Schur complement, with every interaction between units of a layer.
The weights that make a unit cost nothing more once nobody reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.metric import Metric
from geomerge.network import Network
from geomerge.sparsity.parts import Role
from geomerge.sparsity.readers import reader_of
from geomerge.sparsity.units import Units
from geomerge.steps import RateProgram

__all__ = ["Readers", "magnitudes"]


class Readers:
    """The layers that read the units of one set, and what they lose with each.

    Args:
        units: The set.
        metric: At the weights.
        w: The weights, shape (n,).
        gone: Units that are zero already.
    """

    def __init__(self, units: Units, metric: Metric, w: Tensor, gone: Sequence[int]) -> None:
        self.alive = torch.ones(units.count, dtype=torch.bool)
        self.alive[list(gone)] = False
        self._readers = [
            reader_of(part, metric, w, self.alive) for part in units.parts if part.role is Role.READ
        ]

    def costs(self) -> Tensor:  # (units,), float64
        """Return the functional change of each unit beside those gone; infinity for those."""
        total = torch.zeros(len(self.alive), dtype=torch.float64)
        for reader in self._readers:
            total += reader.costs()
        return torch.where(self.alive, total, torch.inf)

    def remove(self, unit: int) -> None:
        """Take a unit away and compensate it."""
        self.alive[unit] = False
        for reader in self._readers:
            reader.remove(unit)

    def shrink(
        self,
        rates: Tensor,  # (units,), float64
    ) -> None:
        """Take a part of each unit away, each compensated for itself; costs stay as they were."""
        for reader in self._readers:
            reader.shrink(rates)

    def write(
        self,
        w: Tensor,  # (n,)
    ) -> None:
        """Add what compensates to a weight vector."""
        for reader in self._readers:
            reader.write(w)

    def slopes(
        self,
        gradient: Tensor,  # (n,)
    ) -> Tensor:  # (units,), float64
        """Return by how much something rises to first order as each unit goes, compensated."""
        total = torch.zeros(len(self.alive), dtype=torch.float64)
        for reader in self._readers:
            total += reader.slopes(gradient)
        return total

    def program(self) -> RateProgram:
        """Return the cost of removing units at rates, each compensated for itself."""
        q = torch.zeros(len(self.alive), len(self.alive), dtype=torch.float64)
        for reader in self._readers:
            q += reader.quadratic()
        return RateProgram(2 * q, torch.zeros(len(q), dtype=torch.float64))


def magnitudes(
    network: Network,
    units: Units,
    w: Tensor,  # (n,)
) -> Tensor:  # (units,), float64
    """Return the L1 norm of the weights that make each unit (Li et al. 2017)."""
    tensors = network.unravel(w)
    total = torch.zeros(units.count, dtype=torch.float64)
    for part in units.parts:
        if part.role is Role.OWN and len(part.shape) > 1:
            rows = tensors[part.tensor].movedim(part.dim, 0).reshape(part.shape[part.dim], -1)
            total += rows.abs().double().sum(dim=1).cpu()[part.indices].sum(dim=1)
    return total
