"""Compression of sketches: leading eigenvectors in bfloat16, factored diagonals of tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from geomerge.io import paged
from geomerge.metrics.kronecker.metric import KroneckerMetric

__all__ = ["diagonal_of_parts", "diagonal_parts", "halved", "numbers_left", "orthonormal"]

_ROWS, _COLUMNS, _WHOLE = "diagonal.rows:", "diagonal.columns:", "diagonal:"
_HALF = 2  # bytes of a number in bfloat16
_ENTRY = 170  # bytes per tensor in the file's header and record
_TABLE = 1024  # elements; smaller diagonals are not factored


def diagonal_parts(
    metric: KroneckerMetric, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return the stored parts of a metric's diagonal.

    The diagonal of a large table, such as an embedding, is approximated by the outer product of its
    row and column sums divided by the total (Adafactor, Shazeer & Stern 2018). Rows reflect the
    frequencies of tokens, columns the sensitivity to each component.

    Args:
        metric: Metric.
        shapes: Shapes of the tensors of its diagonal, by name.
    """
    parts: dict[str, Tensor] = {}
    for name, (_, own) in zip(metric.diagonal_only, metric.diagonals, strict=True):
        shape = shapes.get(name, (len(own),))
        if len(shape) != 2 or len(own) < _TABLE or min(shape) < 2:
            parts[f"{_WHOLE}{name}"] = own.bfloat16().cpu()
            continue
        table = own.view(shape).double()
        parts[f"{_ROWS}{name}"] = table.sum(dim=1).float().cpu()
        columns = table.sum(dim=0) / table.sum().clamp(min=1e-300)
        parts[f"{_COLUMNS}{name}"] = columns.float().cpu()
    return parts


def diagonal_of_parts(tensors: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """Return the diagonal of the parts of :func:`diagonal_parts`, in float32.

    Args:
        tensors: Stored tensors.
        names: Names of the tensors of the diagonal, in order.

    Raises:
        KeyError: If a part is missing.
    """
    factored = [name for name in names if f"{_ROWS}{name}" in tensors]
    sizes = [
        tensors[f"{_ROWS}{name}"].numel() * tensors[f"{_COLUMNS}{name}"].numel()
        if name in factored
        else tensors[f"{_WHOLE}{name}"].numel()
        for name in names
    ]
    diagonal = paged.empty(sum(sizes))
    for name, own in zip(names, diagonal.split(sizes), strict=True):
        if name in factored:
            rows, columns = tensors[f"{_ROWS}{name}"], tensors[f"{_COLUMNS}{name}"]
            torch.outer(rows.float(), columns.float(), out=own.view(len(rows), len(columns)))
        else:
            own.copy_(tensors[f"{_WHOLE}{name}"])
        paged.release(own)
    return diagonal


def numbers_left(metric: KroneckerMetric, parts: Mapping[str, Tensor], share: float) -> int:
    """Return the ``max_numbers`` of :func:`truncated_metric` for a given file size.

    Args:
        metric: Metric.
        parts: Stored parts of its diagonal.
        share: Bytes of the sketch as a share of those of the weights in float32.
    """
    left = share * 4 * metric.n - sum(part.nbytes for part in parts.values())
    left -= _ENTRY * (6 * len(metric.layers) + len(parts))
    return int(left) // _HALF + metric.diagonal.numel()


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return stored tensors with the eigenvectors and eigenvalues in bfloat16."""
    return {
        name: value.bfloat16() if name.endswith((".vectors", ".values")) else value
        for name, value in tensors.items()
    }


def orthonormal(vectors: Tensor) -> Tensor:  # (d, r)
    """Orthonormalise eigenvectors that were rounded to bfloat16, in float32."""
    if vectors.dtype != torch.bfloat16:
        return vectors
    basis, upper = torch.linalg.qr(vectors.double())
    signs = upper.diagonal().sign()
    turned: Tensor = basis * torch.where(signs == 0, torch.ones_like(signs), signs)
    return turned.float()
