"""Rows that come in batches -> the eigen form of the sum of their outer products."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.metric.factor import Factor, factorise

__all__ = ["Moments"]

_WIDEST = 8192  # of wider rows the d x d matrix is never formed: d = 25088 would take 5 GB
_PER_COLUMN = 8  # rows of one batch that say what there is to say about a column
_FEWEST = 4096
_RANK = 1024  # eigenvectors kept of those


class Moments:
    """The sum of x x' over rows x: whole, or of very wide rows the leading eigenvectors.

    Those are cut down to the leading ones after every block of rows; the trace keeps the rest.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None  # (d, d), in float64
        self._kept: Tensor | None = None  # (r, d), eigenvectors times roots of their eigenvalues
        self._trace = 0.0

    def add(
        self,
        rows: Tensor,  # (R, d)
        share: float = 1.0,
    ) -> None:
        """Add the outer products of rows, times a share.

        Of many more rows than columns, such as every patch of a convolution, evenly spread ones
        stand for all.
        """
        most = max(_FEWEST, _PER_COLUMN * rows.shape[1])
        if len(rows) > most:
            share *= len(rows) / most
            rows = rows[torch.linspace(0, len(rows) - 1, most, device=rows.device).long()]
        if rows.shape[1] <= _WIDEST:
            if self._sum is None:
                self._sum = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
            self._sum.add_(rows.T @ rows, alpha=share)
            return
        for block in (rows * share**0.5).split(_RANK):
            self._trace += float(block.square().sum(dtype=torch.float64))
            self._kept = _leading(block if self._kept is None else torch.cat([self._kept, block]))

    def factor(self, count: int) -> Factor:
        """Return the sum divided by a count, in float64 where it is whole.

        Raises:
            NumericalError: If a row was not finite.
        """
        if self._sum is not None:
            return factorise(self._sum / count)
        assert self._kept is not None, "rows were added"
        size = self._kept.shape[1]
        values = self._kept.double().square().sum(dim=1)
        vectors = (self._kept / values.sqrt().unsqueeze(1)).T
        tail = max(self._trace - float(values.sum()), 0.0) / (size - len(values))
        return Factor(vectors.contiguous(), values / count, tail / count)


def _leading(
    rows: Tensor,  # (R, d)
) -> Tensor:  # (r, d)
    """Return at most as many orthogonal rows as are kept, with nearly the same outer products."""
    found = factorise(rows.double() @ rows.double().T)
    significant = found.values > found.values[:1] * 1e-12
    keep = min(_RANK, int(significant.sum()))
    return found.vectors[:, :keep].T.to(rows.dtype) @ rows
