r"""One Kronecker factor in eigen form, whole or truncated with an isotropic tail.

:math:`A \approx U\,\mathrm{diag}(s)\,U' + \tau (I - UU')`, with :math:`\tau` the mean of the
eigenvalues left out, so that the trace is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import NumericalError

__all__ = ["Factor", "factorise"]


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
        The whole factor.

    Raises:
        NumericalError: If the matrix is not finite or the decomposition does not converge.
    """
    if not torch.isfinite(matrix).all():
        raise NumericalError(
            "a factor of the metric is not finite, expected finite activations and gradients; "
            "check the network's outputs on the manifold's inputs"
        )
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError as error:  # torch's LinAlgError
        raise NumericalError(
            f"the eigendecomposition of a {matrix.shape[0]} x {matrix.shape[0]} factor did not "
            "converge; give more inputs"
        ) from error
    return Factor(vectors.flip(1).contiguous(), values.flip(0).clamp(min=0), 0.0)
