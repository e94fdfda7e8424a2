"""Where the units of a layer lie in one tensor, and so in the weight vector."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

__all__ = ["Part", "Role"]


class Role(Enum):
    """What entries of a tensor are for a unit."""

    OWN = "makes its output"
    READ = "reads its output"
    STATISTICS = "is known of its output"  # running mean and variance: not trained, never zeroed


@dataclass(frozen=True, eq=False)
class Part:
    """Where units lie in one tensor.

    Attributes:
        tensor: Its name.
        role: What they are there.
        start: Where the tensor begins in the weight vector.
        shape: Of the tensor.
        dim: Along which dimension the units lie.
        indices: Which entries along it belong to each unit, shape (units, k).
    """

    tensor: str
    role: Role
    start: int
    shape: tuple[int, ...]
    dim: int
    indices: Tensor

    @property
    def span(self) -> slice:
        """Where the tensor lies in the weight vector."""
        return slice(self.start, self.start + torch.Size(self.shape).numel())

    def columns(self) -> Tensor:  # (units, c)
        """Return each unit's columns in the tensor as a matrix, for units that are read (dim 1)."""
        inner = torch.Size(self.shape[2:]).numel()
        columns = self.indices[:, :, None] * inner + torch.arange(inner)
        return columns.reshape(len(self.indices), -1)

    def places(
        self,
        chosen: Tensor,  # (c,), units
    ) -> Tensor:  # (p,)
        """Return the places of units in the weight vector."""
        outer = torch.arange(torch.Size(self.shape[: self.dim]).numel())
        inner = torch.Size(self.shape[self.dim + 1 :]).numel()
        rows = outer[:, None] * self.shape[self.dim] + self.indices[chosen].reshape(-1)
        return (self.start + rows.reshape(-1, 1) * inner + torch.arange(inner)).reshape(-1)

    def clear(
        self,
        w: Tensor,  # (n,)
        chosen: Tensor,  # (c,), units
    ) -> None:
        """Set units to zero in a weight vector: as at their places, but much faster for many."""
        tensor = w[self.span].view(self.shape)
        tensor.index_fill_(self.dim, self.indices[chosen].reshape(-1).to(w.device), 0)
