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

from collections.abc import Callable, Iterable

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
        # Products are up to three times as fast if columns fill vector registers.
        more = (0, -wide % _GROUP if wide > 1 else 0)
        few_a = functional.pad(a.vectors[:, :wide], more).contiguous()
        few_b = b.vectors[:, :tall].contiguous()
        rest = function(outside)
        # In the tail of one factor, h has another value on the leading block of the other.
        by_a, by_b = a.values[:wide], b.values[:tall, None]
        tail_b = rest if b.full else function(b.tail * by_a)
        tail_a = rest if a.full else function(by_b * a.tail)
        self._scale_a = functional.pad(function(b.values[:, None] * by_a) - tail_b, more)
        self._scale_b = function(by_b * a.values) - tail_a
        self._scale_b[:, :wide] = rest - tail_a  # the corner belongs to both blocks
        self._beyond_b = None if b.full else functional.pad(tail_b - rest, more)
        self._beyond_a = None if a.full else tail_a - rest
        self._rest = float(rest)
        # L and R; one half of each does not depend on the matrix. Small matrices take as long as
        # the calls of torch for them: all views are made here.
        columns, width = few_a.shape[1], len(few_a)
        self._left = _aligned(few_b, len(few_b), columns + tall)
        self._right = _aligned(few_b, columns + tall, width)
        self._seen = _aligned(few_b, tall, width)
        self._left[:, columns:], self._right[:columns] = few_b, few_a.T
        self._of_inputs, self._of_outputs = self._left[:, :columns], self._right[columns:]
        self._few_a, self._few_b_rows = few_a, few_b.T
        self._all_b, self._all_b_rows = b.vectors, b.vectors.T
        self._all_a, self._all_a_rows = a.vectors, a.vectors.T
        self._few_a_weight, self._few_a_bias = few_a[:-1], few_a[-1]
        self._seen_weight, self._seen_bias = self._seen[:, :-1], self._seen[:, -1]
        self._right_weight, self._right_bias = self._right[:, :-1], self._right[:, -1]

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
        if len(self._scale_a.T):
            self._write_inputs(weight, bias)
        if len(self._scale_b):
            self._write_outputs(weight, bias)
        right = self._right if bias is None else self._right_weight
        for part, left, room in _blocks(weight, self._left, out[0]):
            torch.addmm(part, left, right, beta=self._rest, out=room)
        if bias is not None and out[1] is not None:
            torch.addmv(bias, self._left, self._right_bias, beta=self._rest, out=out[1])

    def _write_inputs(
        self,
        weight: Tensor,  # (d_out, d_in or d_in - 1)
        bias: Tensor | None,  # (d_out,)
    ) -> None:
        """Write the part of L for the leading block of A."""
        few = self._few_a if bias is None else self._few_a_weight
        seen = weight.new_empty(len(weight), few.shape[1])
        for part, room in _blocks(weight, seen):
            torch.mm(part, few, out=room)
        if bias is not None:
            seen.addr_(bias, self._few_a_bias)
        inside = torch.mm(self._all_b_rows, seen).mul_(self._scale_a)
        torch.mm(self._all_b, inside, out=self._of_inputs)
        if self._beyond_b is not None:
            self._of_inputs.addcmul_(seen, self._beyond_b)

    def _write_outputs(
        self,
        weight: Tensor,  # (d_out, d_in or d_in - 1)
        bias: Tensor | None,  # (d_out,)
    ) -> None:
        """Write the part of R for the leading block of B."""
        if bias is None:
            torch.mm(self._few_b_rows, weight, out=self._seen)
        else:
            torch.mm(self._few_b_rows, weight, out=self._seen_weight)
            torch.mv(self._few_b_rows, bias, out=self._seen_bias)
        inside = torch.mm(self._seen, self._all_a).mul_(self._scale_b)
        torch.mm(inside, self._all_a_rows, out=self._of_outputs)
        if self._beyond_a is not None:
            self._of_outputs.addcmul_(self._seen, self._beyond_a)


def _aligned(like: Tensor, rows: int, columns: int) -> Tensor:  # (rows, columns)
    """Return an empty matrix whose rows begin at whole vector registers."""
    return like.new_empty(rows, columns + -columns % _GROUP)[:, :columns]


def _blocks(matrix: Tensor, *others: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Return matrices in blocks of rows that stay in the cache between two operations."""
    most = max(_GROUP, _BLOCK // matrix.shape[1])
    if len(matrix) <= most:
        return [(matrix, *others)]
    return zip(*(each.split(most) for each in (matrix, *others)), strict=True)
