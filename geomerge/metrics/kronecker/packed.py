"""Symmetric matrices as one triangle, in half the memory.

Rectangular full packed format of Gustavson, Wasniewski, Dongarra & Langou (2010), ACM Transactions
on Mathematical Software 37(2): the last half of the triangle fills the corner that the first half
leaves free, so that both are moved as blocks::

    a . . .        e g
    b e . .   ->   a h      (4 x 4; the first columns below, the last ones above and turned)
    c f i .        b e ...
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["packed", "unpacked"]


def packed(
    matrix: Tensor,  # (d, d)
) -> Tensor:  # (d + 1, d / 2) or (d, (d + 1) / 2)
    """Return the lower triangle of a matrix as a rectangle.

    Args:
        matrix: Matrix. Numbers above its diagonal are not read.
    """
    size = len(matrix)
    half, even = (size + 1) // 2, 1 - size % 2
    out = matrix.new_zeros(size + even, half)
    torch.tril(matrix[:, :half], out=out[even:])
    out[: size - half, 1 - even :] += matrix[half:, half:].tril().T
    return out


def unpacked(
    rectangle: Tensor,  # (d + 1, d / 2) or (d, (d + 1) / 2)
) -> Tensor:  # (d, d)
    """Return the symmetric matrix of a packed triangle."""
    rows, half = rectangle.shape
    size = 2 * half if rows == 2 * half + 1 else rows
    even = 1 - size % 2
    out = rectangle.new_empty(size, size)
    first, last = rectangle[even:], rectangle[: size - half, 1 - even :].T
    out[half:, :half], out[:half, half:] = first[half:], first[half:].T
    for lower, at in ((first[:half].tril(), slice(half)), (last.tril(), slice(half, size))):
        torch.add(lower, lower.tril(-1).T, out=out[at, at])
    return out
