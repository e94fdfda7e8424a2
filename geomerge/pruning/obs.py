r"""Optimal Brain Surgeon for units: cost of removing units, and compensation.

A *consumer* of a unit is a layer whose weight matrix W has columns that multiply the unit's
output. Least squares in the Kronecker metric :math:`A \otimes B` of the consumer: when its columns
P are removed, it adds :math:`-W_P [(A + \lambda)^{-1}_{PP}]^{-1} (A + \lambda)^{-1}_{P\cdot}` to W.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from geomerge.metrics import Metric
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.network import Network
from geomerge.pruning.parts import Part, Role
from geomerge.pruning.units import Units
from geomerge.steps import RateProgram

__all__ = [
    "Consumer",
    "Consumers",
    "WideConsumer",
    "consumer_of",
    "layer_of",
    "magnitudes",
]

_DAMPING = 1e-2  # lambda relative to the mean of A's diagonal
_WIDEST = 8192  # largest number of a layer's inputs for which A is inverted


def layer_of(part: Part, metric: Metric) -> KroneckerLayer | None:
    """Return the metric's layer whose weight is a part's tensor; None without one."""
    return metric.layer_at(part.span)


def consumer_of(
    part: Part,
    metric: Metric,
    w: Tensor,  # (n,)
    alive: Tensor,  # (units,), bool
) -> Consumer | WideConsumer:
    """Return the least-squares problem of one consumer.

    Args:
        part: Columns that multiply the units' outputs.
        metric: Metric at ``w``; matrices without Kronecker factors have the Euclidean metric.
        w: Weights.
        alive: Mask of the units that are not zero.
    """
    layer = layer_of(part, metric)
    if torch.Size(part.shape[1:]).numel() > _WIDEST:
        return WideConsumer(part, layer, w)
    return Consumer(part, layer, w, alive)


class Consumer:
    """Weight matrix that takes units as inputs, with the least-squares problem of its columns.

    Args:
        part: Columns that multiply the units' outputs.
        layer: Kronecker factors of the matrix; None uses the Euclidean metric.
        w: Weights, shape (n,).
        alive: Mask of the units that are not zero, shape (units,).
    """

    def __init__(
        self,
        part: Part,
        layer: KroneckerLayer | None,
        w: Tensor,  # (n,)
        alive: Tensor,  # (units,), bool
    ) -> None:
        self._part, self._layer = part, layer
        self._cut = partial(_matrix, part, layer)
        self.columns, self.w, self.b, a = _matrices(part, layer, w)
        self._before = self.w.clone()
        self._weighed = self.b @ self.w
        mean = float(a.diagonal().mean())  # zero if all inputs are zero
        damping = _DAMPING * mean if mean > 0 else 1.0
        a = a + damping * torch.eye(len(a), dtype=torch.float64)
        dead = self.columns[~alive].reshape(-1)
        a[dead], a[:, dead] = 0, 0
        a[dead, dead] = 1
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(a))

    def _blocks(self) -> Tensor:  # (units, k, k)
        """Return [(A + lambda)^-1_jj]^-1 for every unit j."""
        found: Tensor = torch.linalg.inv(
            self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        )
        return found

    def costs(self) -> Tensor:  # (units,)
        """Return the functional change of removing each unit, after compensation."""
        if self.columns.shape[1] == 1:  # as below, without copies: this is called for every unit
            at = self.columns[:, 0]
            lost: Tensor = (self.w * self._weighed).sum(dim=0)[at]
            return lost / self.inverse.diagonal()[at]
        columns = self.w[:, self.columns].transpose(0, 1)  # (units, d_out, k)
        weighed = self._weighed[:, self.columns].transpose(0, 1)
        found: Tensor = (columns.mT @ weighed * self._blocks()).sum(dim=(1, 2))
        return found

    def remove(self, unit: int) -> None:
        """Remove a unit and compensate with the other columns."""
        at = self.columns[unit]
        gain = torch.linalg.solve(self.inverse[at[:, None], at], self.inverse[at])  # (k, d_in)
        for matrix in (self.w, self._weighed, self.inverse):
            matrix.addmm_(matrix[:, at], gain, alpha=-1)
        self.w[:, at], self._weighed[:, at] = 0, 0
        self.inverse[at], self.inverse[:, at] = 0, 0
        self.inverse[at, at] = 1

    def shrink(
        self,
        rates: Tensor,  # (units,)
    ) -> None:
        """Remove a share of each unit, with separate compensation for each."""
        moves = self._blocks() @ self.inverse[self.columns]  # (units, k, d_in)
        moved = self.w[:, self.columns].transpose(0, 1) * rates[:, None, None]
        self.w = self.w - torch.einsum("jok,jki->oi", moved, moves)

    def write(
        self,
        w: Tensor,  # (n,)
    ) -> None:
        """Add the compensation to a weight vector."""
        # Added, since the same matrix can consume units of several sets.
        matrix = (self._cut(w) + self.w - self._before).to(w)
        if self._layer is None:
            w[self._part.span] = matrix.reshape(-1)
        else:
            self._layer.write(matrix, w)

    def slopes(
        self,
        gradient: Tensor,  # (n,)
    ) -> Tensor:  # (units,)
        """Return a function's derivative along each unit's removal with compensation."""
        moves = self._blocks() @ self.inverse[self.columns]  # (units, k, d_in)
        along = self.w[:, self.columns].transpose(0, 1).mT @ self._cut(gradient)
        return -(along * moves).sum(dim=(1, 2))

    def quadratic(self) -> Tensor:  # (units, units)
        r"""Return tr(B W_i M_i (A + lambda)^-1_ij M_j W_j') with M_j the blocks."""
        units, k = self.columns.shape
        moved = self.w[:, self.columns].transpose(0, 1) @ self._blocks()  # (units, d_out, k)
        flat = self.columns.reshape(-1)
        pairs = self.inverse[flat[:, None], flat].view(units, k, units, k)
        weighed = torch.einsum("op,jpl->jol", self.b, moved)
        return torch.einsum("iok,ikjl,jol->ij", moved, pairs, weighed)


class WideConsumer:
    """Weight matrix with too many columns to invert A, and so without compensation.

    Args:
        part: Columns that multiply the units' outputs.
        layer: Kronecker factors of the matrix; None uses the Euclidean metric.
        w: Weights, shape (n,).
    """

    def __init__(self, part: Part, layer: KroneckerLayer | None, w: Tensor) -> None:
        self._cut = partial(_matrix, part, layer)
        self._columns, self._matrix, b, a = _matrices(part, layer, w, diagonal=True)
        lost = ((b @ self._matrix) * self._matrix).sum(dim=0) * a
        self._costs = lost[self._columns].sum(dim=1)

    def costs(self) -> Tensor:  # (units,)
        """Return the functional change of removing each unit."""
        return self._costs

    def remove(self, unit: int) -> None:
        """Do nothing, since there is no compensation to update."""

    def shrink(
        self,
        rates: Tensor,  # (units,)
    ) -> None:
        """Do nothing, since there is no compensation to update."""

    def write(
        self,
        w: Tensor,  # (n,)
    ) -> None:
        """Do nothing, since there is no compensation."""

    def slopes(
        self,
        gradient: Tensor,  # (n,)
    ) -> Tensor:  # (units,)
        """Return a function's derivative along each unit's removal."""
        return -(self._matrix * self._cut(gradient)).sum(dim=0)[self._columns].sum(dim=1)

    def quadratic(self) -> Tensor:  # (units, units)
        """Return the costs as a diagonal matrix, without interactions of units."""
        return torch.diag(self._costs)


def _matrix(
    part: Part,
    layer: KroneckerLayer | None,
    v: Tensor,  # (n,)
) -> Tensor:  # (d_out, d_in)
    """Return the consumer's matrix in a weight vector, with its bias if the factors include it."""
    if layer is not None:
        return layer.matrix(v).double().cpu()
    return v[part.span].view(part.shape[0], -1).double().cpu()


def _matrices(
    part: Part,
    layer: KroneckerLayer | None,
    w: Tensor,  # (n,)
    diagonal: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each unit's columns, the matrix, B, and A or its diagonal, in float64 on the CPU.

    B and A are identities for a matrix without Kronecker factors.
    """
    matrix = _matrix(part, layer, w)
    if layer is None:
        b, a = torch.eye(len(matrix)), torch.ones(matrix.shape[1])
        a = a if diagonal else torch.diag(a)
    else:
        squares, values = layer.inputs.squares()
        b = layer.outputs.dense()
        a = squares @ values if diagonal else layer.inputs.dense()
    return part.columns(), matrix.clone(), b.double().cpu(), a.double().cpu()


class Consumers:
    """All consumers of the units of one set: costs of removal, and compensation.

    Args:
        units: Set of units.
        metric: Metric at the weights.
        w: Weights, shape (n,).
        gone: Units that are already zero.
    """

    def __init__(self, units: Units, metric: Metric, w: Tensor, gone: Sequence[int]) -> None:
        self.alive = torch.ones(units.count, dtype=torch.bool)
        self.alive[list(gone)] = False
        self._consumers = [
            consumer_of(part, metric, w, self.alive)
            for part in units.parts
            if part.role is Role.CONSUMER
        ]

    def costs(self) -> Tensor:  # (units,), float64
        """Return the functional change of removing each unit; infinity for removed ones."""
        total = torch.zeros(len(self.alive), dtype=torch.float64)
        for consumer in self._consumers:
            total += consumer.costs()
        return torch.where(self.alive, total, torch.inf)

    def remove(self, unit: int) -> None:
        """Remove a unit and compensate for it."""
        self.alive[unit] = False
        for consumer in self._consumers:
            consumer.remove(unit)

    def shrink(
        self,
        rates: Tensor,  # (units,), float64
    ) -> None:
        """Remove a share of each unit, with separate compensation; :meth:`costs` do not change."""
        for consumer in self._consumers:
            consumer.shrink(rates)

    def write(
        self,
        w: Tensor,  # (n,)
    ) -> None:
        """Add the compensation to a weight vector."""
        for consumer in self._consumers:
            consumer.write(w)

    def slopes(
        self,
        gradient: Tensor,  # (n,)
    ) -> Tensor:  # (units,), float64
        """Return a function's derivative along each unit's removal with compensation."""
        total = torch.zeros(len(self.alive), dtype=torch.float64)
        for consumer in self._consumers:
            total += consumer.slopes(gradient)
        return total

    def program(self) -> RateProgram:
        """Return the cost of removing units at rates, with separate compensation for each."""
        q = torch.zeros(len(self.alive), len(self.alive), dtype=torch.float64)
        for consumer in self._consumers:
            q += consumer.quadratic()
        return RateProgram(2 * q, torch.zeros(len(q), dtype=torch.float64))


def magnitudes(
    network: Network,
    units: Units,
    w: Tensor,  # (n,)
) -> Tensor:  # (units,), float64
    """Return the L1 norm of the weights that produce each unit (Li et al. 2017)."""
    tensors = network.unravel(w)
    total = torch.zeros(units.count, dtype=torch.float64)
    for part in units.parts:
        if part.role is Role.PRODUCER and len(part.shape) > 1:
            rows = tensors[part.tensor].movedim(part.dim, 0).reshape(part.shape[part.dim], -1)
            total += rows.abs().double().sum(dim=1).cpu()[part.indices].sum(dim=1)
    return total
