"""The block of one layer of a Kronecker metric: two factors, and where the layer's weights lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.metric.factor import Factor

__all__ = ["KroneckerLayer"]

_LITTLE = 1e-3


@dataclass(frozen=True)
class KroneckerLayer:
    """The metric of one layer's weight matrix (d_out, d_in), bias as its last column.

    Attributes:
        name: The module's dotted name, or its weight's with the rows meant (``a.weight[0:8]``)
            where no Linear or Conv2d module holds it alone.
        weight: Where the weight lies in the weight vector.
        bias: Where the bias lies, or None.
        inputs: Factor A of the layer's inputs, (d_in, d_in).
        outputs: Factor B of the gradients at its outputs, (d_out, d_out).
    """

    name: str
    weight: slice
    bias: slice | None
    inputs: Factor
    outputs: Factor

    def matrix(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (d_out, d_in)
        """Cut this layer's matrix out of a weight vector."""
        part = v[self.weight].view(self.outputs.vectors.shape[0], -1)
        return part if self.bias is None else torch.cat([part, v[self.bias].unsqueeze(1)], dim=1)

    def write(
        self,
        matrix: Tensor,  # (d_out, d_in)
        v: Tensor,  # (n,)
    ) -> None:
        """Write this layer's matrix into a weight vector."""
        if self.bias is None:
            v[self.weight] = matrix.reshape(-1)
        else:
            v[self.weight] = matrix[:, :-1].reshape(-1)
            v[self.bias] = matrix[:, -1]

    def coordinates(
        self,
        matrix: Tensor,  # (d_out, d_in)
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Split a matrix along U_B and U_A and, where truncated, what is orthogonal to them."""
        a, b = self.inputs, self.outputs
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

    def from_coordinates(self, parts: list[Tensor]) -> Tensor:  # (d_out, d_in)
        """Undo :meth:`coordinates`."""
        a, b = self.inputs, self.outputs
        left = parts[0] @ a.vectors.T
        if not a.full:
            left = left + parts[1]
        matrix = b.vectors @ left
        if not b.full:
            matrix = matrix + parts[-1 if a.full else 2] @ a.vectors.T
        if not a.full and not b.full:
            matrix = matrix + parts[3]
        return matrix

    def transformed(
        self,
        matrix: Tensor,  # (d_out, d_in)
        function: Callable[[Tensor], Tensor],
    ) -> Tensor:  # (d_out, d_in)
        """Return a function of the factors' product, applied to a matrix.

        What :meth:`coordinates`, scaling and :meth:`from_coordinates` give, without building the
        parts orthogonal to kept directions: a multiple of the matrix, corrected along U_A and U_B.
        With few kept directions, and tails of zero, that is many times faster. Of U_B and the tail
        of A together only what moves the value there by a thousandth is corrected.
        """
        a, b = self.inputs, self.outputs
        inside = function(b.values[:, None] * a.values)
        if a.full and b.full:
            return b.vectors @ (inside * (b.vectors.T @ (matrix @ a.vectors))) @ a.vectors.T
        zero = matrix.new_zeros(())
        # What both tails give; where one is empty any multiple would do, and this one saves work.
        rest = function(zero + (0.0 if a.full or b.full else a.tail * b.tail))
        by_a = zero if b.full or not b.tail else function(b.tail * a.values) - rest
        by_b = zero if a.full or not a.tail else function(b.values[:, None] * a.tail) - rest
        inside = inside - by_a - by_b - rest
        if by_a.dim() == 0 and (by_b.dim() or len(b.values) < len(a.values)):
            left = b.vectors.T @ matrix
            inner = (inside * (left @ a.vectors)) @ a.vectors.T
            return torch.addmm(rest * matrix, b.vectors, inner.addcmul_(by_b, left))
        right = matrix @ a.vectors
        outer = torch.addmm(right * by_a, b.vectors, inside * (b.vectors.T @ right))
        found = torch.addmm(rest * matrix, outer, a.vectors.T)
        few = int((by_b.abs() > _LITTLE * rest.abs()).sum()) if by_b.dim() else 0
        if few:  # eigenvalues descend
            u = b.vectors[:, :few]
            found.addmm_(u, by_b[:few] * (u.T @ matrix))
        return found

    @property
    def trace(self) -> float:
        """Sum of all eigenvalues."""
        return self.inputs.trace * self.outputs.trace

    @property
    def leading_trace(self) -> float:
        """Sum of the eigenvalues of kept eigenvectors."""
        a, b = self.inputs.values.double().sum(), self.outputs.values.double().sum()
        return float(a * b)

    @property
    def n_parts(self) -> int:
        """How many parts :meth:`coordinates` gives."""
        return (1 if self.inputs.full else 2) * (1 if self.outputs.full else 2)
