"""Kronecker factors whose eigenvectors are held in bfloat16, in memory or in a file."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.io import paged
from geomerge.metrics.kronecker.factor import Factor

__all__ = ["HalfFactor"]


class HalfFactor(Factor):
    """Factor whose eigenvectors are held in half the bytes, and made orthonormal for every use.

    Rounding to bfloat16 leaves inner products E = U'U - I of about 2^-9. A damped inverse would
    multiply them with the ratio of the largest eigenvalue to the damping. One iteration toward the
    nearest orthonormal vectors, U (I - E / 2 + 3 E^2 / 8), leaves their cube (Bjorck & Bowie 1971,
    SIAM Journal on Numerical Analysis 8(2)). Products are in the type of before the rounding.

    Args:
        stored: Eigenvectors in bfloat16, shape (d, s), in ordinary memory or in a file.
        values: Eigenvalues of the leading ones, descending, shape (r,).
        tail: Eigenvalue of all directions orthogonal to these; unused if r = d.
        store: Files that the eigenvectors lie in; None if they are in memory.
    """

    def __init__(
        self, stored: Tensor, values: Tensor, tail: float, store: paged.Store | None = None
    ) -> None:
        super().__init__(stored, values, tail)
        self.dtype = values.dtype
        self._stored, self._values, self._tail, self._store = stored, values, tail, store

    @classmethod
    def of(cls, factor: Factor, store: paged.Store | None = None) -> HalfFactor:
        """Return a factor in half the bytes.

        Args:
            factor: The factor.
            store: Files for its eigenvectors; None holds them in memory.
        """
        if isinstance(factor, HalfFactor):
            return factor
        vectors = factor.vectors.bfloat16()
        stored = vectors if store is None else store.hold(vectors)
        return cls(stored, factor.values.clone(), factor.tail, store)

    @property
    def rank(self) -> int:
        """Number of used eigenvectors."""
        return len(self._values)

    @property
    def values(self) -> Tensor:  # (r,)
        """Eigenvalues, descending."""
        return self._values

    @property
    def tail(self) -> float:
        """Eigenvalue of all directions orthogonal to the eigenvectors."""
        return self._tail

    @property
    def nbytes(self) -> int:
        """Bytes of the stored eigenvectors and of the eigenvalues."""
        return self._stored.nbytes + self._values.nbytes

    @property
    def ready(self) -> Factor:
        """The factor with its eigenvectors in the type of before, for one use."""
        return Factor(*self._in_eigen_form())

    def _in_eigen_form(self) -> tuple[Tensor, Tensor, float]:
        u = self._stored[:, : self.rank].to(self.dtype)
        self.release()
        gap = u.T @ u
        gap.diagonal().sub_(1)
        turn = torch.addmm(gap, gap, gap, beta=-0.5, alpha=0.375)
        turn.diagonal().add_(1)
        return u @ turn, self._values, self._tail

    def truncated(self, rank: int) -> HalfFactor:
        """Return the factor with ``rank`` eigenvectors, which are stored once for both."""
        if rank >= self.rank:
            return self
        rest = float(self._values[rank:].double().sum()) + (self.size - self.rank) * self._tail
        tail = rest / (self.size - rank)
        return HalfFactor(self._stored, self._values[:rank], tail, self._store)

    def held_in(self, store: paged.Store) -> HalfFactor:
        """Return the factor itself."""
        return self

    def alike(self, factor: Factor) -> HalfFactor:
        """Return another factor in half the bytes, in files if this one lies there."""
        return HalfFactor.of(factor, self._store)

    def release(self) -> None:
        """Give back the memory of eigenvectors in a file."""
        paged.release(self._stored)

    def to(self, dtype: torch.dtype, device: torch.device) -> Factor:
        """Return the factor in another type or on another device; its vectors stay in bfloat16."""
        values = self._values.to(device, dtype)
        return HalfFactor(self._stored.to(device), values, self._tail, self._store)
