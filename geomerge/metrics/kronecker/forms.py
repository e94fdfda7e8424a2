r"""Forms of Kronecker factors that take less memory: half precision, files, blocks, diagonal.

With diagonal blocks :math:`A_i` and :math:`B_j` of a layer's factors the metric of the layer is
block diagonal: :math:`A_i \otimes B_j` for the weights in rows j and columns i of its matrix.
Second moments of four blocks take a quarter of the memory, decompositions a sixteenth of the time.
Blocks and diagonal are principal blocks of the whole metric, and thus positive semidefinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from geomerge.io import paged
from geomerge.metrics.kronecker.diagonal_layer import DiagonalFactor, DiagonalLayer
from geomerge.metrics.kronecker.factor import WIDEST, Factor, factor_bytes, factorise
from geomerge.metrics.kronecker.half_factor import HalfFactor
from geomerge.metrics.kronecker.layer import KroneckerLayer, MatrixPart
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.networks.autocast import widened
from geomerge.networks.factor_form import FactorForm
from geomerge.networks.network import Network

__all__ = [
    "Squares",
    "cuts",
    "dense_factors",
    "files_of",
    "held_bytes",
    "hold",
    "in_form",
    "split_layer",
]

_BLOCKS = 4  # diagonal blocks of a wide factor
_WIDE = 512  # largest width of a factor that is not split


def cuts(width: int, form: FactorForm) -> list[slice]:
    """Return the rows of a factor's diagonal blocks.

    Args:
        width: Number of rows of the factor. Factors of at most 512 rows are not split; nor are
            those of more than 8192, whose leading eigenvectors take less memory than blocks.
        form: Form of the factors.
    """
    if form is not FactorForm.BLOCKS or not _WIDE < width <= WIDEST:
        return [slice(0, width)]
    ends = [width * k // _BLOCKS for k in range(_BLOCKS + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def hold(factor: Factor, form: FactorForm, store: paged.Store | None) -> Factor:
    """Return a factor as it is held in a form.

    Args:
        factor: Factor, or diagonal block of one.
        form: Form of the factors.
        store: Files of :func:`files_of`.
    """
    whole = form in (FactorForm.WHOLE, FactorForm.DIAGONAL)
    return factor if whole else HalfFactor.of(factor, store)


def files_of(form: FactorForm) -> paged.Store | None:
    """Return files for the eigenvectors of a metric; None in forms that hold them in memory."""
    return paged.Store(paged.LEAST) if form in (FactorForm.FILES, FactorForm.BLOCKS) else None


def held_bytes(widths: Sequence[int], form: FactorForm, device: torch.device) -> int:
    """Return the bytes in memory of factors as they are held in a form.

    Args:
        widths: Width of every factor, or of its diagonal blocks.
        form: Form of the factors.
        device: Their device.
    """
    if form is FactorForm.DIAGONAL:
        return sum(4 * width for width in widths)
    total = sum(map(factor_bytes, widths))
    if form is FactorForm.WHOLE:
        return total
    half, store = total // 2, files_of(form)
    filed = store is not None and store.used and device.type == "cpu" and paged.has_room(half)
    return 0 if filed else half


def split_layer(
    layer: KroneckerLayer, inputs: Sequence[Factor], outputs: Sequence[Factor]
) -> list[KroneckerLayer]:
    """Return the layers of the diagonal blocks of a layer's factors.

    Args:
        layer: Layer; only its name and places are used.
        inputs: Diagonal blocks of A.
        outputs: Diagonal blocks of B.
    """
    if len(inputs) == len(outputs) == 1:
        return [replace(layer, inputs=inputs[0], outputs=outputs[0])]
    found, row, total = [], 0, sum(b.size for b in outputs)
    for b in outputs:
        rows = slice(row, row + b.size)
        row, column = rows.stop, 0
        for k, a in enumerate(inputs):
            columns = slice(column, column + a.size)
            column, bias = columns.stop, None
            if layer.bias is not None and k == len(inputs) - 1:  # its place is the last column
                columns = slice(columns.start, columns.stop - 1)
                bias = slice(layer.bias.start + rows.start, layer.bias.start + rows.stop)
            name = f"{layer.name}[{rows.start}:{rows.stop}, {columns.start}:{columns.stop}]"
            part = MatrixPart(total, rows, columns)
            found.append(replace(layer, name=name, bias=bias, inputs=a, outputs=b, part=part))
    return found


def in_form(metric: KroneckerMetric, network: Network) -> KroneckerMetric:
    """Return a metric in the form of a network's factors; one that is already, as it is.

    Args:
        metric: Metric with whole factors, such as that of a sketch.
        network: Network of the metric.
    """
    form = network.factor_form
    if form is FactorForm.WHOLE:
        return metric
    if form is FactorForm.DIAGONAL:
        return replace(metric, layers=tuple(map(diagonal_layer, metric.layers)))
    layers: list[KroneckerLayer] = []
    store = files_of(form)
    for layer in metric.layers:
        sides = [(f, cuts(f.size, form)) for f in (layer.inputs, layer.outputs)]
        if layer.part is not None:
            sides = [(f, [slice(0, f.size)]) for f, _ in sides]
        a, b = (
            [hold(_block(factor, place), form, store) for place in places]
            for factor, places in sides
        )
        layers += split_layer(replace(layer, leading_blocks=None), a, b)
    return replace(metric, layers=tuple(layers))


def dense_factors(metric: KroneckerMetric, place: slice) -> tuple[Tensor, Tensor] | None:
    """Return the factors of a weight matrix in any form, dense.

    Diagonal blocks of both factors make block diagonal factors, whose product is the same metric.

    Args:
        metric: Metric.
        place: Slice of the weight vector that holds exactly the matrix.

    Returns:
        A, shape (d_in, d_in), with a last row and column of the bias where there is one, and B,
        shape (d_out, d_out); None if the metric has no factors there.
    """
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    for layer in metric.layers:
        if layer.weight == place:
            _, row, column = layer.places
            inputs.setdefault(column, layer.inputs.dense())
            outputs.setdefault(row, layer.outputs.dense())
    if not inputs:
        return None
    a, b = (torch.block_diag(*(one[k] for k in sorted(one))) for one in (inputs, outputs))
    return a, b


def diagonal_layer(layer: KroneckerLayer) -> KroneckerLayer:
    """Return a layer with the diagonals of its factors."""
    if isinstance(layer, DiagonalLayer):
        return layer
    a, b = (
        f if isinstance(f, DiagonalFactor) else DiagonalFactor(torch.mv(*f.squares()))
        for f in (layer.inputs, layer.outputs)
    )
    return DiagonalLayer(
        layer.name, layer.weight, layer.bias, a, b, transposed=layer.transposed, part=layer.part
    )


def _block(factor: Factor, place: slice) -> Factor:
    """Return a diagonal block of a factor."""
    if place == slice(0, factor.size):
        return factor
    vectors = factor.vectors
    rows = vectors[place].double()
    tail = 0.0 if factor.full else factor.tail
    matrix = (rows * (factor.values.double() - tail)) @ rows.T
    matrix.diagonal().add_(tail)
    return factorise(matrix).to(vectors.dtype, vectors.device)


class Squares:
    """Diagonal of second moments, the sum of squares of rows.

    Attributes:
        total: The sum, shape (d,), in float64; None before the first rows.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(
        self,
        rows: Tensor,  # (R, d)
        share: float = 1.0,
    ) -> None:
        """Add the squares of rows, times a share."""
        found = widened(rows).square().sum(dim=0, dtype=torch.float64)
        self.total = share * found if self.total is None else self.total.add_(found, alpha=share)
