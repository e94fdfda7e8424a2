r"""Functions of a Kronecker product, exact on leading blocks of its eigenvalues.

.. math:: h(A \otimes B)\, M = \eta M + L R, \qquad \eta = h(\text{mean of all other eigenvalues})

The low-rank term L R corrects the result on two leading blocks: the leading directions of A with
all of B, and the leading directions of B with all of A. In the table of products of eigenvalues::

    eigenvalues of A, descending ->
    +------+---------------------+
    | both |  leading block of B |   eigenvalues of B,
    +------+---------------------+   descending
    | lead.|                     |
    | block|   replaced by the   |
    | of A |         mean        |
    +------+---------------------+

No temporary is as large as the matrix, and everything independent of the matrix is computed once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from geomerge.metrics.kronecker.factor import Factor

__all__ = ["LeadingBlockFunction"]

_GROUP = 16  # columns of one vector register
_BLOCK = 2**22  # numbers per block of rows


class LeadingBlockFunction:
    """Function of A x B, exact on leading blocks.

    Args:
        inputs: Factor A, (d_in, d_in).
        outputs: Factor B, (d_out, d_out).
        leading_blocks: Numbers of leading directions of A and of B.
        outside: Eigenvalue that replaces all products outside of the blocks, shape ().
        function: Function h of eigenvalues, tensors of any shape.
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
        self._sizes = leading_blocks
        # Products are up to three times as fast if columns fill vector registers.
        more = (0, -wide % _GROUP if wide > 1 else 0)
        self._few_a = functional.pad(a.vectors[:, :wide], more).contiguous()
        self._few_b = b.vectors[:, :tall].contiguous()
        self._rest = rest = function(outside)
        # In the tail of one factor, h has another value on the leading block of the other.
        by_a, by_b = a.values[:wide], b.values[:tall, None]
        tail_b = rest if b.full else function(b.tail * by_a)
        tail_a = rest if a.full else function(by_b * a.tail)
        self._scale_a = functional.pad(function(b.values[:, None] * by_a) - tail_b, more)
        self._scale_b = function(by_b * a.values) - tail_a
        self._scale_b[:, :wide] = rest - tail_a  # the corner belongs to both blocks
        # L and R; one half of each does not depend on the matrix.
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
        """Apply the function to a matrix.

        Args:
            weight: The matrix without the column of the bias.
            bias: Column of the bias, or None.
            out: Tensors of the same two shapes that are overwritten.
        """
        wide, tall = self._sizes
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
    """Return slices of rows whose blocks stay in the cache between two operations."""
    most = max(_GROUP, _BLOCK // matrix.shape[1])
    return [slice(i, i + most) for i in range(0, len(matrix), most)]
