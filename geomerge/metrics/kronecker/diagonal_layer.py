r"""Diagonal of a layer's Kronecker metric, held as the diagonals of both factors.

The diagonal of :math:`A \otimes B` is the outer product of those of A and B: d_in + d_out numbers
stand for one of each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from geomerge.io import paged
from geomerge.metrics.base import identity, weighted_inner
from geomerge.metrics.kronecker.factor import Factor
from geomerge.metrics.kronecker.layer import KroneckerLayer

__all__ = ["DiagonalFactor", "DiagonalLayer"]


class DiagonalFactor(Factor):
    """Diagonal matrix, whose eigenvectors are unit vectors in their order.

    Args:
        entries: Its diagonal, shape (d,).
    """

    def __init__(self, entries: Tensor) -> None:
        super().__init__(entries[:, None], entries, 0.0)
        self.entries = entries

    @property
    def rank(self) -> int:
        """Number of rows."""
        return self.size

    @property
    def values(self) -> Tensor:  # (d,)
        """The diagonal, in its order."""
        return self.entries

    @property
    def nbytes(self) -> int:
        """Bytes of the diagonal."""
        return self.entries.nbytes

    def _in_eigen_form(self) -> tuple[Tensor, Tensor, float]:
        unit = torch.eye(self.size, dtype=self.dtype, device=self.entries.device)
        return unit, self.entries, 0.0

    def truncated(self, rank: int) -> DiagonalFactor:
        """Return the factor itself."""
        return self

    def held_in(self, store: paged.Store) -> DiagonalFactor:
        """Return the factor itself."""
        return self

    def to(self, dtype: torch.dtype, device: torch.device) -> DiagonalFactor:
        """Return the factor in another type or on another device."""
        return DiagonalFactor(self.entries.to(device, dtype))

    @classmethod
    def sum(cls, factors: Sequence[DiagonalFactor], scale: float) -> DiagonalFactor:
        """Return the scaled sum of factors."""
        entries = torch.stack([factor.entries for factor in factors]).sum(dim=0)
        return cls(scale * entries)


class DiagonalLayer(KroneckerLayer):
    """Layer of which the metric is diagonal; both factors are :class:`DiagonalFactor`."""

    @property
    def _eigenvalues(self) -> Tensor:  # (d_out, d_in)
        return torch.outer(self.outputs.values, self.inputs.values)

    def coordinates(
        self,
        matrix: Tensor,  # (d_out, d_in)
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the matrix itself, with an eigenvalue for each entry."""
        return [matrix], [self._eigenvalues]

    def from_coordinates(self, parts: list[Tensor]) -> Tensor:  # (d_out, d_in)
        """Return the matrix with the given coordinates."""
        return parts[0]

    def squared_norm(
        self,
        matrix: Tensor,  # (d_out, d_in)
    ) -> float:
        """Return the inner product of a matrix with itself in this metric."""
        return weighted_inner([matrix], [matrix], [self._eigenvalues])

    def apply(
        self,
        function: Callable[[Tensor], Tensor],
        v: Tensor,  # (n,)
        out: Tensor,  # (n,)
    ) -> None:
        """Apply a function of the metric to this layer's part of v.

        Args:
            function: Function h of eigenvalues, tensors of any shape.
            v: Vector.
            out: Vector whose part of this layer is overwritten.
        """
        self.write(self.matrix(v) * function(self._eigenvalues), out)

    def mv(
        self,
        v: Tensor,  # (n,)
        out: Tensor,  # (n,)
    ) -> None:
        """Write g v of this layer's part of v."""
        self.apply(identity, v, out)

    def with_leading_blocks(self, threshold: float) -> DiagonalLayer:
        """Return the layer itself, whose functions are exact at no cost."""
        return self
