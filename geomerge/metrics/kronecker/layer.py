"""Block of one layer in a Kronecker metric: two factors and slices of the weight vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from geomerge.io import paged
from geomerge.metrics.base import identity
from geomerge.metrics.kronecker.factor import Factor
from geomerge.metrics.kronecker.leading_blocks import LeadingBlockFunction

__all__ = ["KroneckerLayer", "MatrixPart"]


class MatrixPart(NamedTuple):
    """Rows and columns of a weight matrix.

    Attributes:
        total: Number of rows of the whole matrix.
        rows: Slice of the rows.
        columns: Slice of the columns, without that of the bias.
    """

    total: int
    rows: slice
    columns: slice


@dataclass(frozen=True)
class KroneckerLayer:
    """Metric of one layer's weight matrix (d_out, d_in), with the bias as its last column.

    Attributes:
        name: Dotted name of the Linear or Conv2d module, or for other weights the name of the
            weight with its rows (``a.weight[0:8]``).
        weight: Slice of the weight in the weight vector.
        bias: Slice of the bias, or None.
        inputs: Factor A of the layer's inputs, (d_in, d_in).
        outputs: Factor B of the gradients at its outputs, (d_out, d_out).
        leading_blocks: Numbers of leading directions of A (each with all of B) and of B (each with
            all of A) whose eigenvalue products are exact in :meth:`apply`; all other products are
            replaced by their mean. If None, all are exact.
        transposed: Whether the weight is stored as (d_in, d_out), as in transposed convolutions.
        part: Part of the weight matrix that the factors are of, as diagonal blocks of wider ones;
            None for the whole matrix. ``weight`` is the slice of the whole matrix in any case.
    """

    name: str
    weight: slice
    bias: slice | None
    inputs: Factor
    outputs: Factor
    leading_blocks: tuple[int, int] | None = None
    transposed: bool = False
    part: MatrixPart | None = None

    def held_in(self, store: paged.Store) -> KroneckerLayer:
        """Return the layer with the eigenvectors in a store."""
        inputs, outputs = self.inputs.held_in(store), self.outputs.held_in(store)
        return replace(self, inputs=inputs, outputs=outputs)

    def release(self, *vectors: Tensor) -> None:
        """Give back the memory of the eigenvectors, and of this layer's parts of vectors."""
        self.inputs.release()
        self.outputs.release()
        for span in (self.weight, self.bias):
            if span is not None:
                paged.release(*(v[span] for v in vectors))

    @property
    def alone(self) -> KroneckerLayer:
        """The layer on a vector of its own matrix (d_out, d_in) alone, row by row."""
        size = self.inputs.size * self.outputs.size
        return replace(self, weight=slice(0, size), bias=None, transposed=False, part=None)

    def matrix(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (d_out, d_in)
        """Return this layer's matrix in a weight vector."""
        part = self._weight(v)
        return part if self.bias is None else torch.cat([part, v[self.bias].unsqueeze(1)], dim=1)

    def write(
        self,
        matrix: Tensor,  # (d_out, d_in)
        v: Tensor,  # (n,)
    ) -> None:
        """Write this layer's matrix into a weight vector."""
        if self.bias is None:
            self._weight(v).copy_(matrix)
        else:
            self._weight(v).copy_(matrix[:, :-1])
            v[self.bias] = matrix[:, -1]

    def _weight(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (d_out, d_in or d_in - 1), a view
        part = self.part
        rows = self.outputs.size if part is None else part.total
        weights = v[self.weight]
        matrix = weights.view(-1, rows).T if self.transposed else weights.view(rows, -1)
        return matrix if part is None else matrix[part.rows, part.columns]

    def coordinates(
        self,
        matrix: Tensor,  # (d_out, d_in)
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the coordinates of a matrix along U_B and U_A, and the parts orthogonal to these.

        Returns:
            The parts and their eigenvalues, as in
            :class:`~geomerge.metrics.base.EigenCoordinates`; orthogonal parts exist for truncated
            factors only.
        """
        a, b = self.inputs.ready, self.outputs.ready
        left = b.vectors.T @ matrix
        core = left @ a.vectors
        parts, eigenvalues = [core], [b.values[:, None] * a.values[None, :]]
        if not a.full:
            parts.append(left - core @ a.vectors.T)
            eigenvalues.append((b.values * a.tail)[:, None])
        if not b.full:
            right = matrix @ a.vectors
            parts.append(right - b.vectors @ core)
            eigenvalues.append((b.tail * a.values)[None, :])
        if not a.full and not b.full:
            parts.append(matrix - b.vectors @ left - parts[2] @ a.vectors.T)
            eigenvalues.append(core.new_tensor(a.tail * b.tail))
        return parts, eigenvalues

    def squared_norm(
        self,
        matrix: Tensor,  # (d_out, d_in)
    ) -> float:
        """Return the inner product of a matrix with itself in this metric, vec(M)' g vec(M).

        Parts orthogonal to the leading directions are not formed: their squares are differences of
        squares. These are rounded, but multiplied with eigenvalues that are smaller than those of
        the difference.
        """
        a, b = self.inputs.ready, self.outputs.ready
        left = b.vectors.T @ matrix
        core = _squares(left @ a.vectors)
        total = b.values.double() @ core @ a.values.double()
        if not a.full:
            outside = (_squares(left).sum(dim=1) - core.sum(dim=1)).clamp(min=0)
            total += a.tail * (b.values.double() @ outside)
        if not b.full:
            right = _squares(matrix @ a.vectors).sum(dim=0)
            total += b.tail * ((right - core.sum(dim=0)).clamp(min=0) @ a.values.double())
        if not a.full and not b.full:
            rest = _squares(matrix).sum() - _squares(left).sum() - right.sum() + core.sum()
            total += a.tail * b.tail * rest.clamp(min=0)
        return float(total)

    def from_coordinates(self, parts: list[Tensor]) -> Tensor:  # (d_out, d_in)
        """Return the matrix with the given :meth:`coordinates`."""
        a, b = self.inputs.ready, self.outputs.ready
        left = parts[0] @ a.vectors.T
        if not a.full:
            left = left + parts[1]
        matrix = b.vectors @ left
        if not b.full:
            matrix = matrix + parts[-1 if a.full else 2] @ a.vectors.T
        if not a.full and not b.full:
            matrix = matrix + parts[3]
        return matrix

    def apply(
        self,
        function: Callable[[Tensor], Tensor],
        v: Tensor,  # (n,)
        out: Tensor,  # (n,)
    ) -> None:
        """Apply a function of the factors' product to this layer's part of v.

        The result equals scaling between :meth:`coordinates` and :meth:`from_coordinates`, without
        computing the parts orthogonal to the leading directions.

        Args:
            function: Function h of eigenvalues, tensors of any shape.
            v: Vector.
            out: Vector whose part of this layer is overwritten.
        """
        self._function(function).write(*self._parts(v), self._parts(out))

    def mv(
        self,
        v: Tensor,  # (n,)
        out: Tensor,  # (n,)
    ) -> None:
        """Write g v of this layer's part of v, B M A of its matrix M.

        Args:
            v: Vector.
            out: Vector whose part of this layer is overwritten.
        """
        if self.leading_blocks is None:
            self.write(self.outputs.times(self.inputs.times(self.matrix(v).T).T), out)
        else:
            self.apply(identity, v, out)

    def _parts(
        self,
        v: Tensor,  # (n,)
    ) -> tuple[Tensor, Tensor | None]:  # (d_out, d_in or d_in - 1), (d_out,)
        return self._weight(v), None if self.bias is None else v[self.bias]

    def _function(self, function: Callable[[Tensor], Tensor]) -> LeadingBlockFunction:
        """Return the function of the factors' product, cached for steps of equal damping."""
        made = self._cache.get(function)
        if made is None:
            blocks = self.leading_blocks or self.all_blocks
            a, b = self.inputs.ready, self.outputs.ready
            made = LeadingBlockFunction(a, b, blocks, self._outside, function)
            self._cache.clear()
            held = a is self.inputs and b is self.outputs
            if held and self.leading_blocks is not None:  # else it is as large as the factors
                self._cache[function] = made
        return made

    @cached_property
    def _cache(self) -> dict[Callable[[Tensor], Tensor], LeadingBlockFunction]:
        """The last function used; at most one entry."""
        return {}

    @cached_property
    def _outside(self) -> Tensor:  # ()
        """Mean of the eigenvalues outside of the leading blocks."""
        a, b = self.inputs, self.outputs
        wide, tall = self.leading_blocks or self.all_blocks
        count = (a.size - wide) * (b.size - tall)
        if not count:
            return a.values.new_zeros(())
        rest_a = a.trace - float(a.values[:wide].double().sum())
        rest_b = b.trace - float(b.values[:tall].double().sum())
        return a.values.new_tensor(max(rest_a, 0.0) * max(rest_b, 0.0) / count)

    @property
    def all_blocks(self) -> tuple[int, int]:
        """Numbers of leading directions outside of which all eigenvalues are equal."""
        a, b = self.inputs, self.outputs
        return (0 if b.full and not a.full else len(a.values), 0 if a.full else len(b.values))

    def with_leading_blocks(self, threshold: float) -> KroneckerLayer:
        """Return the layer with the cheapest leading blocks for a threshold of eigenvalues.

        Most products of two eigenvalues are small, and products with a few leading directions of
        each factor are much cheaper than with all of them.

        Args:
            threshold: Value above which all eigenvalues must lie in a leading block.
        """
        a, b = self.inputs, self.outputs
        (rows, kept_b), (columns, kept_a) = (b.size, b.rank), (a.size, a.rank)
        if a.tail * b.tail > threshold:
            return replace(self, leading_blocks=self.all_blocks)
        next_b = torch.cat([b.values, b.values.new_tensor([b.tail])])  # the largest one omitted
        tall = torch.arange(kept_b + 1, device=next_b.device)
        wide = (a.values[:, None] * next_b > threshold).sum(dim=0)
        products = rows * columns * (wide + tall) + kept_b * rows * wide + kept_a * columns * tall
        best = int(products.masked_fill(a.tail * next_b > threshold, 2**62).argmin())
        return replace(self, leading_blocks=(int(wide[best]), best))

    @property
    def places(self) -> tuple[int, int, int]:
        """First place in the weight vector, and first row and column; no two layers share them."""
        part = self.part
        inside = (0, 0) if part is None else (part.rows.start, part.columns.start)
        return (self.weight.start, *inside)

    @property
    def trace(self) -> float:
        """Sum of all eigenvalues."""
        return self.inputs.trace * self.outputs.trace

    @property
    def leading_trace(self) -> float:
        """Sum of the eigenvalues of stored eigenvectors."""
        a, b = self.inputs.values.double().sum(), self.outputs.values.double().sum()
        return float(a * b)

    @property
    def n_parts(self) -> int:
        """Number of parts that :meth:`coordinates` returns."""
        return (1 if self.inputs.full else 2) * (1 if self.outputs.full else 2)


def _squares(x: Tensor) -> Tensor:
    return x.double().square()
