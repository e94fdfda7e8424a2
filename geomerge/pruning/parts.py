"""Indices of units in one tensor and in the weight vector."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

__all__ = ["Part", "Role"]


class Role(Enum):
    """Relation of a tensor's entries to a unit."""

    PRODUCER = "produces its output"
    CONSUMER = "consumes its output"
    STATISTICS = "running mean and variance of its output"  # not trained, never set to zero


@dataclass(frozen=True, eq=False)
class Part:
    """Entries of units in one tensor.

    Attributes:
        tensor: Name of the tensor.
        role: Relation of the entries to the units.
        start: Index in the weight vector at which the tensor begins.
        shape: Shape of the tensor.
        dim: Dimension along which the units lie.
        indices: Indices along ``dim`` of each unit, shape (units, k).
    """

    tensor: str
    role: Role
    start: int
    shape: tuple[int, ...]
    dim: int
    indices: Tensor

    @property
    def span(self) -> slice:
        """Slice of the tensor in the weight vector."""
        return slice(self.start, self.start + torch.Size(self.shape).numel())

    def columns(self) -> Tensor:  # (units, c)
        """Return each unit's columns of a consumer's weight matrix (dim 1)."""
        inner = torch.Size(self.shape[2:]).numel()
        columns = self.indices[:, :, None] * inner + torch.arange(inner)
        return columns.reshape(len(self.indices), -1)

    def places(
        self,
        chosen: Tensor,  # (c,), units
    ) -> Tensor:  # (p,)
        """Return the indices of units in the weight vector."""
        outer = torch.arange(torch.Size(self.shape[: self.dim]).numel())
        inner = torch.Size(self.shape[self.dim + 1 :]).numel()
        rows = outer[:, None] * self.shape[self.dim] + self.indices[chosen].reshape(-1)
        return (self.start + rows.reshape(-1, 1) * inner + torch.arange(inner)).reshape(-1)

    def clear(
        self,
        w: Tensor,  # (n,)
        chosen: Tensor,  # (c,), units
    ) -> None:
        """Set units to zero in a weight vector, faster than by :meth:`places` for many units."""
        tensor = w[self.span].view(self.shape)
        tensor.index_fill_(self.dim, self.indices[chosen].reshape(-1).to(w.device), 0)
