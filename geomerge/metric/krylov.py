r"""Lanczos: a symmetric matrix seen from one vector, by products alone.

With :math:`v_1 = v/|v|` and full reorthogonalisation :math:`g V_k = V_k T_k + b_k q e_k'`, where
:math:`T_k = V_k' g V_k` is tridiagonal and q a unit vector orthogonal to V_k. From the Ritz pairs
:math:`T_k = Y \mathrm{diag}(s) Y'` follows :math:`(g + \mu I)^{-1} v \approx
|v|\,V_k Y (s + \mu)^{-1} Y' e_1` for every :math:`\mu` at once (Gould, Lucidi, Roma & Toint 1999,
GLTR), with the residual given exactly by :math:`b_k`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metric.base import Spectrum

__all__ = ["Krylov", "lanczos"]


@dataclass(frozen=True)
class Krylov:
    """The space of v, g v, ..., g^(k-1) v in an orthonormal basis.

    Attributes:
        basis: V_k as rows, shape (k, n), in the type of v.
        values: Ritz values s, rounding below zero cut off, shape (k,), float64.
        vectors: Y, their coordinates in the basis as columns, shape (k, k), float64.
        length: |v|.
        remainder: b_k, the length of what g adds to the space.
    """

    basis: Tensor
    values: Tensor
    vectors: Tensor
    length: float
    remainder: float

    def spectrum(self) -> Spectrum:
        """Return v along the Ritz vectors; the directions belong to this v alone."""
        return Spectrum([self.length * self.vectors[0]], [self.values], self._compose)

    def residual(self, damping: float) -> float:
        """Return |(g + mu I) x - v| of the x that the spectrum gives for (g + mu I)^-1 v.

        It is b_k |e_k'c|, c the coordinates of x in the basis.
        """
        c = self.vectors @ (self.length * self.vectors[0] / (self.values + damping))
        return self.remainder * abs(float(c[-1]))

    def _compose(self, parts: list[Tensor]) -> Tensor:  # (n,)
        return (self.vectors @ parts[0]).to(self.basis.dtype) @ self.basis


def lanczos(
    product: Callable[[Tensor], Tensor],
    v: Tensor,  # (n,)
    rank: int,
) -> Krylov:
    """Build the Krylov space of v.

    Args:
        product: u -> g u, shapes (n,), g symmetric.
        v: Where to start; zero gives a space of one zero vector.
        rank: Largest dimension k; fewer when g adds nothing beyond rounding any more.

    Returns:
        The space, after at most ``rank`` products.

    Raises:
        NumericalError: If v or a product is not finite.
    """
    length = float(v.double().norm())
    basis = v.new_empty(min(rank, len(v)), len(v))
    t = torch.zeros(len(basis), len(basis), dtype=torch.float64, device=v.device)
    q = v / length if length > 0 else v
    remainder = 0.0
    for k in range(len(basis)):
        basis[k] = q
        known = basis[: k + 1]
        r = product(q)
        t[k, k] = q.double() @ r.double()
        for _ in range(2):  # once leaves rounding along the leading Ritz vectors
            r = r - (known @ r) @ known
        remainder = float(r.double().norm())
        if not remainder < float("inf"):
            raise NumericalError(
                "a product with the metric is not finite, expected numbers; check the weights and "
                "the direction"
            )
        scale = float(t.abs().max())
        if k + 1 == len(basis) or remainder <= 100 * torch.finfo(v.dtype).eps * scale:
            break
        t[k, k + 1] = t[k + 1, k] = remainder
        q = r / remainder
    values, vectors = torch.linalg.eigh(t[: k + 1, : k + 1])
    return Krylov(basis[: k + 1], values.clamp(min=0), vectors, length, remainder)
