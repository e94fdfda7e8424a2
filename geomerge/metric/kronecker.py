r"""The Kronecker form of the pullback metric: one pair of factors per layer.

For a linear layer with inputs a (bias folded in) and output gradients delta,
:math:`g_l \approx A \otimes B`, :math:`A = E[aa']`, :math:`B = \sum_{out} E[\delta\delta']`
(Martens & Grosse 2015); for a convolution A sums over positions and B averages over them
(Grosse & Martens 2016, KFC). Layers do not interact. With B = I the same form is OWM, Adam-NSCL
and GPM (as soft or hard projections), RegMean and SparseGPT's layerwise Hessian. Weights that serve
in no such product get the exact diagonal of the metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomerge.metric.base import Spectrum
from geomerge.metric.factor import Factor

__all__ = ["KroneckerLayer", "KroneckerMetric"]


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


@dataclass(frozen=True)
class KroneckerMetric:
    """Kronecker factors per layer and an exact diagonal for all other weights.

    Attributes:
        n: Length of the weight vectors.
        layers: The covered layers.
        rest: Slices of the weights no layer covers.
        diagonal: The metric's diagonal on them, one after the other.
        rest_names: Their names, for reports.
    """

    n: int
    layers: tuple[KroneckerLayer, ...]
    rest: tuple[slice, ...]
    diagonal: Tensor
    rest_names: tuple[str, ...] = ()
    name: str = field(default="kronecker", init=False)
    floor: float = field(default=0.0, init=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors and the diagonal."""
        factors = [f for layer in self.layers for f in (layer.inputs, layer.outputs)]
        return self.diagonal.nbytes + sum(f.vectors.nbytes + f.values.nbytes for f in factors)

    def spectrum(
        self,
        v: Tensor,  # (n,)
    ) -> Spectrum:
        """Split v along the eigendirections of every layer and the coordinates of the rest."""
        parts: list[Tensor] = []
        eigenvalues: list[Tensor] = []
        for layer in self.layers:
            p, e = layer.coordinates(layer.matrix(v))
            parts += p
            eigenvalues += e
        if self.rest:
            parts.append(torch.cat([v[s] for s in self.rest]))
            eigenvalues.append(self.diagonal)
        return Spectrum(parts, eigenvalues, self._compose)

    def _compose(self, parts: list[Tensor]) -> Tensor:  # (n,)
        """Put coordinates together to a vector."""
        v = parts[0].new_empty(self.n)
        at = 0
        for layer in self.layers:
            layer.write(layer.from_coordinates(parts[at : at + layer.n_parts]), v)
            at += layer.n_parts
        start = 0
        for s in self.rest:
            length = s.stop - s.start
            v[s] = parts[at][start : start + length]
            start += length
        return v

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' g v."""
        one = self.spectrum(u)
        other = one if u is v else self.spectrum(v)
        total = 0.0
        for p, q, e in zip(one.parts, other.parts, one.eigenvalues, strict=True):
            total += float((p.double() * q.double() * e.double()).sum())
        return total

    def diagonal_of(self, function: Callable[[Tensor], Tensor]) -> Tensor:  # (n,)
        """Return the diagonal of a function of the metric, such as its damped inverse.

        Args:
            function: Eigenvalues to eigenvalues, of any shape.
        """
        found = self.diagonal.new_empty(self.n)
        for layer in self.layers:
            (a, by_a), (b, by_b) = layer.inputs.squares(), layer.outputs.squares()
            layer.write(b @ function(by_b[:, None] * by_a[None, :]) @ a.T, found)
        start = 0
        for s in self.rest:
            length = s.stop - s.start
            found[s] = function(self.diagonal[start : start + length])
            start += length
        return found

    def sharpened(self, damping: float) -> KroneckerMetric:
        """Leave out directions that a damping drowns, to make steps cheaper.

        Args:
            damping: mu of the steps to come. Eigenvectors whose largest eigenvalue in the layer
                is under mu / 2 join the isotropic tail, which keeps their mean; walks end at the
                same accuracies.

        Returns:
            A metric on the same weights.
        """
        return KroneckerMetric(
            self.n,
            tuple(_sharpen(layer, damping / 2) for layer in self.layers),
            self.rest,
            self.diagonal,
            self.rest_names,
        )


def _sharpen(layer: KroneckerLayer, threshold: float) -> KroneckerLayer:
    a, b = layer.inputs, layer.outputs
    keep_a = int((a.values * float(b.values[:1].sum()) > threshold).sum())
    keep_b = int((b.values * float(a.values[:1].sum()) > threshold).sum())
    # A product with a factor that kept nearly everything is cheaper whole than with a tail.
    a = a.truncated(max(keep_a, 1)) if keep_a < 0.7 * a.values.numel() else a
    b = b.truncated(max(keep_b, 1)) if keep_b < 0.7 * b.values.numel() else b
    return KroneckerLayer(layer.name, layer.weight, layer.bias, a, b)
