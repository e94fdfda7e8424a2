"""The block of one layer of a Kronecker metric: two factors, and where the layer's weights lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from geomerge.metrics.kronecker.factor import Factor
from geomerge.metrics.kronecker.leading_blocks import StripFunction

__all__ = ["KroneckerLayer"]


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
        strips: How many leading directions of A, with all of B, and of B, with all of A, count
            one by one in :meth:`apply`; all other products of two eigenvalues as their mean.
            None counts everything.
    """

    name: str
    weight: slice
    bias: slice | None
    inputs: Factor
    outputs: Factor
    leading_blocks: tuple[int, int] | None = None

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

    def apply(
        self,
        function: Callable[[Tensor], Tensor],
        v: Tensor,  # (n,)
        out: Tensor,  # (n,)
    ) -> None:
        """Write a function of the factors' product, applied to this layer's part of v, into out.

        What :meth:`coordinates`, scaling and :meth:`from_coordinates` give, without building the
        parts orthogonal to kept directions.
        """
        self._applied(function).write(*self._parts(v), self._parts(out))

    def _parts(
        self,
        v: Tensor,  # (n,)
    ) -> tuple[Tensor, Tensor | None]:  # (d_out, d_in or d_in - 1), (d_out,)
        weight = v[self.weight].view(len(self.outputs.vectors), -1)
        return weight, None if self.bias is None else v[self.bias]

    def _applied(self, function: Callable[[Tensor], Tensor]) -> StripFunction:
        """Return the function along the strips; of steps with one damping it is made once."""
        made = self._made.get(function)
        if made is None:
            leading_blocks = self.leading_blocks or self.exact_strips
            made = StripFunction(self.inputs, self.outputs, leading_blocks, self._outside, function)
            self._made.clear()
            if self.leading_blocks is not None:  # else it is as large as the factors
                self._made[function] = made
        return made

    @cached_property
    def _made(self) -> dict[Callable[[Tensor], Tensor], StripFunction]:
        """The last one."""
        return {}

    @cached_property
    def _outside(self) -> Tensor:  # ()
        """The mean of the eigenvalues that lie in no strip."""
        a, b = self.inputs, self.outputs
        wide, tall = self.leading_blocks or self.exact_strips
        count = (len(a.vectors) - wide) * (len(b.vectors) - tall)
        if not count:
            return a.values.new_zeros(())
        rest_a = a.trace - float(a.values[:wide].double().sum())
        rest_b = b.trace - float(b.values[:tall].double().sum())
        return a.values.new_tensor(max(rest_a, 0.0) * max(rest_b, 0.0) / count)

    @property
    def exact_strips(self) -> tuple[int, int]:
        """Strips outside of which all eigenvalues are one."""
        a, b = self.inputs, self.outputs
        return (0 if b.full and not a.full else len(a.values), 0 if a.full else len(b.values))

    def with_leading_blocks(self, threshold: float) -> KroneckerLayer:
        """Choose the cheapest strips that hold all eigenvalues over a threshold.

        A product with a few leading directions of one factor and a few of the other is much
        cheaper than one with all of either, and most products of two eigenvalues are small.
        """
        a, b = self.inputs, self.outputs
        (rows, kept_b), (columns, kept_a) = b.vectors.shape, a.vectors.shape
        if a.tail * b.tail > threshold:
            return replace(self, leading_blocks=self.exact_strips)
        next_b = torch.cat([b.values, b.values.new_tensor([b.tail])])  # the largest left out
        tall = torch.arange(kept_b + 1, device=next_b.device)
        wide = (a.values[:, None] * next_b > threshold).sum(dim=0)
        products = rows * columns * (wide + tall) + kept_b * rows * wide + kept_a * columns * tall
        best = int(products.masked_fill(a.tail * next_b > threshold, 2**62).argmin())
        return replace(self, leading_blocks=(int(wide[best]), best))

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
