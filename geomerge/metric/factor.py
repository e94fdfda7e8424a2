r"""One Kronecker factor in eigen form, whole or truncated with an isotropic tail.

:math:`A \approx U\,\mathrm{diag}(s)\,U' + \tau (I - UU')`, with :math:`\tau` the mean of the
eigenvalues left out, so that the trace is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import NumericalError

__all__ = ["RANK", "WHOLE", "Factor", "factorise"]

WHOLE = 2048  # of wider matrices only leading eigenvectors: of 4608 columns all take a minute
RANK = 1024
_MORE = 64  # directions carried along, for the last of the leading ones to be exact
_PRODUCTS = 3


@dataclass(frozen=True)
class Factor:
    """A symmetric positive semidefinite matrix (d, d) in eigen form.

    Attributes:
        vectors: Leading eigenvectors U, shape (d, r).
        values: Their eigenvalues, descending, shape (r,).
        tail: Eigenvalue of everything orthogonal to U; unused when r = d.
    """

    vectors: Tensor
    values: Tensor
    tail: float

    @property
    def full(self) -> bool:
        """Whether no direction was left out."""
        return self.vectors.shape[0] == self.vectors.shape[1]

    @property
    def trace(self) -> float:
        """Sum of all eigenvalues."""
        size, rank = self.vectors.shape
        return float(self.values.double().sum()) + (size - rank) * self.tail

    def truncated(self, rank: int) -> Factor:
        """Keep the leading ``rank`` eigenvectors; the rest become an isotropic tail."""
        size, old = self.vectors.shape
        if rank >= old:
            return self
        rest = float(self.values[rank:].double().sum()) + (size - old) * self.tail
        return Factor(self.vectors[:, :rank].contiguous(), self.values[:rank], rest / (size - rank))

    def squares(self) -> tuple[Tensor, Tensor]:  # (d, r or r + 1), (r or r + 1,)
        """Return how each coordinate lies in each eigenspace, and the eigenvalues.

        Returns:
            Squared lengths of the coordinates' projections, rows that sum to one; the tail is one
            space.
        """
        inside = self.vectors.square()
        if self.full:
            return inside, self.values
        outside = (1 - inside.sum(dim=1, keepdim=True)).clamp(min=0)
        return torch.cat([inside, outside], dim=1), torch.cat(
            [self.values, self.values.new_tensor([self.tail])]
        )

    def dense(self) -> Tensor:  # (d, d)
        """Return the matrix itself."""
        size = self.vectors.shape[0]
        u = self.vectors
        rest = torch.eye(size, dtype=u.dtype, device=u.device) - u @ u.T
        return (u * self.values) @ u.T + self.tail * rest

    def to(self, dtype: torch.dtype, device: torch.device) -> Factor:
        """Return the factor in another type or place."""
        return Factor(self.vectors.to(device, dtype), self.values.to(device, dtype), self.tail)


def factorise(
    matrix: Tensor,  # (d, d), float64
) -> Factor:
    """Return the eigen form of a symmetric positive semidefinite matrix.

    Args:
        matrix: In float64: ``eigh`` in float32 fails on nearly singular factors. Rounding below
            zero is cut off.

    Returns:
        The whole factor; of matrices wider than 2048 the leading 1024 eigenvectors, from a random
        start and three products with the matrix (Halko, Martinsson & Tropp 2011, algorithm 4.4).

    Raises:
        NumericalError: If the matrix is not finite or the decomposition does not converge.
    """
    if not torch.isfinite(matrix).all():
        raise NumericalError(
            "a factor of the metric is not finite, expected finite activations and gradients; "
            "check the network's outputs on the manifold's inputs"
        )
    size = len(matrix)
    if size > WHOLE:
        return _leading(matrix)
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError as error:  # torch's LinAlgError
        raise NumericalError(
            f"the eigendecomposition of a {size} x {size} factor did not converge; give more inputs"
        ) from error
    return Factor(vectors.flip(1).contiguous(), values.flip(0).clamp(min=0), 0.0)


def _leading(
    matrix: Tensor,  # (d, d), float64
) -> Factor:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), RANK + _MORE, generator=generator)
    single = matrix.float()  # for the products that only turn the basis
    basis = start.to(single)
    for _ in range(_PRODUCTS):
        basis = torch.linalg.qr(single @ basis).Q
    basis = torch.linalg.qr(basis.double()).Q
    inside = factorise(basis.T @ (matrix @ basis))
    vectors = (basis @ inside.vectors[:, :RANK]).contiguous()
    values = inside.values[:RANK]
    rest = float(matrix.diagonal().sum() - values.sum())
    return Factor(vectors, values, max(rest, 0.0) / (len(matrix) - RANK))
