r"""A function h of a Kronecker product, applied to matrices.

.. math:: h(A \otimes B)\, M = \eta M + L R, \qquad \eta = h(\text{mean of the eigenvalues left})

where L R, of low rank, corrects what lies along the leading directions of A (with all of B) and of
B (with all of A). Nothing as large as the matrix is made, and only what depends on it each time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from geomerge.metrics.kronecker.factor import Factor

__all__ = ["StripFunction"]

_GROUP = 16  # columns, numbers of one vector register
_BLOCK = 2**22  # numbers


class StripFunction:
    """A function of A x B along strips.

    Args:
        inputs: Factor A, (d_in, d_in).
        outputs: Factor B, (d_out, d_out).
        strips: How many leading directions of A, and of B, count one by one.
        outside: The eigenvalue that stands for all products outside of the strips, shape ().
        function: h, of eigenvalues of any shape.
    """

    def __init__(
        self,
        inputs: Factor,
        outputs: Factor,
        leading_blocks: tuple[int, int],
        outside: Tensor,  # ()
        function: Callable[[Tensor], Tensor],
    ) -> None:
        a, b = inputs, outputs
        wide, tall = leading_blocks
        self._all_a, self._all_b = a.vectors, b.vectors
        self._strips = leading_blocks
        # Products are up to three times as fast with whole groups of columns of their own.
        more = (0, -wide % _GROUP if wide > 1 else 0)
        self._few_a = functional.pad(a.vectors[:, :wide], more).contiguous()
        self._few_b = b.vectors[:, :tall].contiguous()
        self._rest = rest = function(outside)
        # Beyond the kept directions of one factor, along a strip of the other, h is another number.
        by_a, by_b = a.values[:wide], b.values[:tall, None]
        tail_b = rest if b.full else function(b.tail * by_a)
        tail_a = rest if a.full else function(by_b * a.tail)
        self._scale_a = functional.pad(function(b.values[:, None] * by_a) - tail_b, more)
        self._scale_b = function(by_b * a.values) - tail_a
        self._scale_b[:, :wide] = rest - tail_a  # they are in the other strip
        # L and R, each with its half that is the same every time.
        new = self._few_b.new_empty
        self._left = torch.cat([new(len(b.vectors), wide), self._few_b], dim=1)
        self._right = torch.cat([a.vectors[:, :wide].T, new(tall, len(a.vectors))])
        self._beyond_b = None if b.full else functional.pad(tail_b - rest, more)
        self._beyond_a = None if a.full else tail_a - rest

    def write(
        self,
        weight: Tensor,  # (d_out, d_in or d_in - 1)
        bias: Tensor | None,  # (d_out,), the last column
        out: tuple[Tensor, Tensor | None],
    ) -> None:
        """Apply the function to a matrix and write it into another of the same two parts."""
        wide, tall = self._strips
        left, right = self._left, self._right
        if wide:
            left[:, :wide] = self._along_inputs(weight, bias)[:, :wide]
        if tall:
            right[wide:] = self._along_outputs(weight, bias)
        by_weight = right[:, : weight.shape[1]]
        for rows in _blocks(weight):
            torch.mul(weight[rows], self._rest, out=out[0][rows]).addmm_(left[rows], by_weight)
        if bias is not None and out[1] is not None:
            torch.mul(bias, self._rest, out=out[1]).addmv_(left, right[:, -1])

    def _along_inputs(
        self,
        weight: Tensor,  # (d_out, d_in or d_in - 1)
        bias: Tensor | None,  # (d_out,)
    ) -> Tensor:  # (d_out, wide or a little more)
        few = self._few_a[: weight.shape[1]]
        seen = weight.new_empty(len(weight), few.shape[1])
        for rows in _blocks(weight):
            torch.mm(weight[rows], few, out=seen[rows])
        if bias is not None:
            seen.addr_(bias, self._few_a[-1])
        inside = self._all_b @ (self._all_b.T @ seen).mul_(self._scale_a)
        return inside if self._beyond_b is None else inside.addcmul_(seen, self._beyond_b)

    def _along_outputs(
        self,
        weight: Tensor,  # (d_out, d_in or d_in - 1)
        bias: Tensor | None,  # (d_out,)
    ) -> Tensor:  # (tall, d_in)
        seen = self._few_b.T @ weight
        if bias is not None:
            seen = torch.cat([seen, (self._few_b.T @ bias).unsqueeze(1)], dim=1)
        inside = (seen @ self._all_a).mul_(self._scale_b) @ self._all_a.T
        return inside if self._beyond_a is None else inside.addcmul_(seen, self._beyond_a)


def _blocks(matrix: Tensor) -> list[slice]:
    """Cut the rows of a matrix into blocks that stay in the cache between two operations."""
    most = max(_GROUP, _BLOCK // matrix.shape[1])
    return [slice(i, i + most) for i in range(0, len(matrix), most)]
