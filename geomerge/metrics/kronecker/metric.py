r"""Kronecker-factored pullback metric: one pair of factors per layer.

For a linear layer with inputs a (bias folded in) and output gradients delta,
:math:`g_l \approx A \otimes B`, :math:`A = E[aa']`, :math:`B = \sum_{out} E[\delta\delta']`
(Martens & Grosse 2015); for a convolution A sums over positions and B averages over them (Grosse &
Martens 2016, KFC). Blocks between layers are neglected. With B = I the same form appears in OWM,
Adam-NSCL and GPM (as soft or hard projections), in RegMean, and as the layerwise Hessian of
SparseGPT. For weights outside of such products the exact diagonal of the metric is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.io import paged
from geomerge.metrics.base import EigenCoordinates, Metric, weighted_inner
from geomerge.metrics.kronecker.diagonal_layer import DiagonalFactor, DiagonalLayer
from geomerge.metrics.kronecker.factor import Factor, decompose
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.factor_form import FactorForm
from geomerge.notebook import card, table

__all__ = ["KroneckerMetric"]


@dataclass(frozen=True)
class KroneckerMetric(Metric):
    """Kronecker factors per layer and an exact diagonal for all other weights.

    Attributes:
        n: Length of the weight vectors.
        layers: Factors of the covered layers.
        rest: Slices of all other weights.
        diagonal: Diagonal of the metric on these slices, concatenated.
        diagonal_only: Names of the tensors in these slices, for reports.
        one_by_one: Names of those that were measured by derivatives of the whole network per input.
    """

    n: int
    layers: tuple[KroneckerLayer, ...]
    rest: tuple[slice, ...]
    diagonal: Tensor
    diagonal_only: tuple[str, ...] = ()
    one_by_one: tuple[str, ...] = ()
    name = "kronecker"
    additive = True
    data_free = True
    forms = tuple(FactorForm)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors and the diagonal."""
        factors = {id(f): f for layer in self.layers for f in (layer.inputs, layer.outputs)}
        return self.diagonal.nbytes + sum(f.nbytes for f in factors.values())

    @property
    def diagonals(self) -> list[tuple[slice, Tensor]]:
        """Slice and diagonal of each tensor outside of layers."""
        sizes = [span.stop - span.start for span in self.rest]
        return list(zip(self.rest, self.diagonal.split(sizes), strict=True))

    def __repr__(self) -> str:
        covered = f"{len(self.layers)} layers, {len(self.rest)} diagonals"
        return f"<KroneckerMetric of {self.n:,} weights: {covered}, {self.nbytes / 1e6:.3g} MB>"

    def _repr_html_(self) -> str:
        rows = [
            [
                layer.name,
                *(f"{f.rank} of {f.size}" for f in (layer.inputs, layer.outputs)),
                f"{layer.trace:.3g}",
                f"{layer.leading_trace / layer.trace if layer.trace else 1:.1%}",
            ]
            for layer in self.layers
        ]
        rows += [[name, "", "", "", "diagonal"] for name in self.diagonal_only]
        return card(
            f"Kronecker metric of {self.n:,} weights, {self.nbytes / 1e6:.3g} MB",
            table(("layer", "directions, inputs", "outputs", "trace", "stored share"), rows),
        )

    def coordinates(
        self,
        v: Tensor,  # (n,)
    ) -> EigenCoordinates:
        """Return v along the eigenvectors of every layer, and unchanged outside of layers."""
        parts: list[Tensor] = []
        eigenvalues: list[Tensor] = []
        for layer in self.layers:
            p, e = layer.coordinates(layer.matrix(v))
            parts += p
            eigenvalues += e
        if self.rest:
            parts.append(torch.cat([v[s] for s in self.rest]))
            eigenvalues.append(self.diagonal)
        return EigenCoordinates(parts, eigenvalues, self._compose)

    def apply(
        self,
        function: Callable[[Tensor], Tensor],
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return h(g) v."""
        out = torch.empty_like(v)
        for layer in self.layers:
            layer.apply(function, v, out)
        for place, diagonal in self.diagonals:
            out[place] = v[place] * function(diagonal)
        return out

    def mv(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return g v; temporaries are as large as one layer."""
        out = torch.empty_like(v)
        for layer in self.layers:
            layer.mv(v, out)
        for place, diagonal in self.diagonals:
            torch.mul(v[place], diagonal, out=out[place])
        return out

    def squared_distance(
        self,
        first: Tensor,  # (n,)
        second: Tensor,  # (n,)
    ) -> float:
        """Return (first - second)' g (first - second); temporaries are as large as one layer."""
        total = 0.0
        for layer in self.layers:
            total += layer.squared_norm(layer.matrix(first) - layer.matrix(second))
            layer.release(first, second)
        for place, diagonal in self.diagonals:
            for p, q, part in paged.in_parts(first[place], second[place], diagonal):
                total += weighted_inner([gap := p - q], [gap], [part])
        return total

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' g v; temporaries are as large as one layer."""
        total = 0.0
        for layer in self.layers:
            if u is v:
                total += layer.squared_norm(layer.matrix(v))
                continue
            first, eigenvalues = layer.coordinates(layer.matrix(u))
            second, _ = layer.coordinates(layer.matrix(v))
            total += weighted_inner(first, second, eigenvalues)
        for place, diagonal in self.diagonals:
            total += weighted_inner([u[place]], [v[place]], [diagonal])
        return total

    def _compose(self, parts: list[Tensor]) -> Tensor:  # (n,)
        """Return the vector with the given coordinates."""
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

    def diagonal_of(self, function: Callable[[Tensor], Tensor]) -> Tensor:  # (n,)
        """Return the diagonal of h(g), such as that of a damped inverse.

        Args:
            function: Function h of eigenvalues, tensors of any shape.
        """
        out = self.diagonal.new_empty(self.n)
        for layer in self.layers:
            (a, by_a), (b, by_b) = layer.inputs.squares(), layer.outputs.squares()
            layer.write(b @ function(by_b[:, None] * by_a[None, :]) @ a.T, out)
        for place, diagonal in self.diagonals:
            out[place] = function(diagonal)
        return out

    def truncate(self, damping: float) -> KroneckerMetric:
        """Return a metric without eigenvalues that are small compared to a damping.

        Args:
            damping: Damping mu of later steps. Eigenvectors whose largest eigenvalue in the layer
                is below mu / 2 join the isotropic tail with their mean eigenvalue; in
                :meth:`apply`, so do all other eigenvalues below mu / 2.
        """
        layers = tuple(_truncated(layer, damping / 2) for layer in self.layers)
        return replace(self, layers=layers)

    def layer_at(self, place: slice) -> KroneckerLayer | None:
        """Return the layer whose weight is exactly a slice of the weight vector."""
        whole = (layer for layer in self.layers if layer.part is None)
        return next((layer for layer in whole if layer.weight == place), None)

    def plus(self, others: Sequence[KroneckerMetric], *, mean: bool) -> KroneckerMetric:
        """Return a Kronecker metric for the sum, or the mean, of metrics on the same weights.

        Input factors are summed and output factors averaged. The Kronecker product nearest to the
        sum in the Frobenius norm is worse for walks, since it follows the largest term and neglects
        the others.

        Args:
            others: Metrics of the same network. Layers of which only some metrics have factors,
                such as one head of several, are summed over these; the other functions do not
                depend on them.
            mean: Whether to divide the sum by the number of metrics.
        """
        metrics = [self, *others]
        share = 1 / len(metrics) if mean else 1.0
        same: dict[tuple[int, int, int], list[KroneckerLayer]] = {}
        for metric in metrics:
            for layer in metric.layers:
                same.setdefault(layer.places, []).append(layer)
        store, layers = paged.Store(4 * self.n), []
        for _, terms in sorted(same.items()):
            both = replace(
                terms[0],
                inputs=_sum([layer.inputs for layer in terms], share),
                outputs=_sum([layer.outputs for layer in terms], 1 / len(terms)),
                leading_blocks=None,
            )
            layers.append(both.held_in(store))
            paged.give_back()
        # Weights with a diagonal in one metric can be in a layer of another.
        covered = [span for layer in layers for span in (layer.weight, layer.bias) if span]
        rest: dict[int, tuple[slice, str, list[Tensor]]] = {}
        for metric in metrics:
            names = metric.diagonal_only or ("",) * len(metric.rest)
            for (span, part), name in zip(metric.diagonals, names, strict=True):
                if any(s.start <= span.start and span.stop <= s.stop for s in covered):
                    continue
                rest.setdefault(span.start, (span, name, []))[2].append(part)
        spans, names, added = zip(*rest.values(), strict=True) if rest else ((), (), ())
        sizes, like = [span.stop - span.start for span in spans], self.diagonal
        diagonal = paged.empty(sum(sizes), like.dtype, like.device)
        for total, parts in zip(diagonal.split(sizes), added, strict=True):
            for out, *few in paged.in_parts(total, *parts):
                torch.mul(few[0], share, out=out)
                for part in few[1:]:
                    out += share * part
        return KroneckerMetric(
            self.n, tuple(layers), spans, diagonal, names if self.diagonal_only else ()
        )


def _truncated(layer: KroneckerLayer, threshold: float) -> KroneckerLayer:
    if isinstance(layer, DiagonalLayer):
        return layer
    a, b = layer.inputs, layer.outputs
    keep_a = int((a.values * float(b.values[:1].sum()) > threshold).sum())
    keep_b = int((b.values * float(a.values[:1].sum()) > threshold).sum())
    # A full factor is cheaper to multiply with than a nearly full one with a tail.
    a = a.truncated(max(keep_a, 1)) if keep_a < 0.7 * a.values.numel() else a
    b = b.truncated(max(keep_b, 1)) if keep_b < 0.7 * b.values.numel() else b
    return replace(layer, inputs=a, outputs=b).with_leading_blocks(threshold)


def _sum(factors: list[Factor], scale: float) -> Factor:
    diagonal = [factor for factor in factors if isinstance(factor, DiagonalFactor)]
    if len(diagonal) == len(factors):
        return DiagonalFactor.sum(diagonal, scale)
    if 2 * sum(factor.rank for factor in factors) <= factors[0].size:
        return _sum_of_truncated(factors, scale)
    total = scale * sum((f.matrix() for f in factors[1:]), factors[0].matrix())
    return factors[0].alike(Factor.later(total).to(factors[0].dtype, total.device))


def _sum_of_truncated(factors: list[Factor], scale: float) -> Factor:
    """Return the exact sum of truncated factors, isotropic outside of their joint eigenspace."""
    tail = sum(factor.tail for factor in factors)
    basis, turned = torch.linalg.qr(torch.cat([f.vectors.double() for f in factors], dim=1))
    above = torch.cat([f.values.double() - f.tail for f in factors])
    inside = decompose((turned * above) @ turned.T)
    found = Factor(basis @ inside.vectors, scale * (inside.values + tail), scale * tail)
    return factors[0].alike(found.to(factors[0].dtype, basis.device))
