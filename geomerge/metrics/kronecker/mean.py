r"""Mean of several points in weight space, each weighted by its own Kronecker metric.

The mean minimises :math:`\sum_i s_i (w - w_i)' g_i (w - w_i) + k \mu |w - a|^2`, eq. (2) of
arXiv 2012.09605 summed over k networks, so that the total predicted drift is smallest.
In a layer the g_i are Kronecker products, whose sum has no closed inverse; conjugate gradients with
the preconditioner (mean A) x (mean B) + mu solve it in some tens of products (Tam, Bansal & Raffel
2023, arXiv 2312.04339, with a Fisher metric). RegMean is the case B_i = I. Weights outside of
layers have diagonal metrics, as in Fisher merging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from geomerge.io import paged
from geomerge.metrics.kronecker.joint_eigenspace import (
    conjugate_gradients,
    solve_in_joint_eigenspace,
    spans_all,
)
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric

__all__ = ["KroneckerMean"]


class KroneckerMean:
    """Solver for weighted means of points in their metrics.

    Args:
        metrics: Metrics g_i of the same network, undamped.
        points: Points w_i, shape (n,) each.
        anchor: Point a of the damping, shape (n,).
        scales: Factors s_i of the metrics; None means 1.
        smallest: Function of the smallest mean eigenvalue of the layers, None without any, that
            returns the smallest where several processes have some of the layers each.
    """

    def __init__(
        self,
        metrics: Sequence[KroneckerMetric],
        points: Sequence[Tensor],
        anchor: Tensor,
        scales: Sequence[float] | None = None,
        smallest: Callable[[float | None], float | None] | None = None,
    ) -> None:
        self._smallest = smallest
        self._metrics, self._points, self._anchor = list(metrics), list(points), anchor
        self._scales = list(scales) if scales is not None else [1.0] * len(self._metrics)
        self.mean = self._metrics[0].plus(self._metrics[1:], mean=True)
        # Products round differently before, and a mean must not depend on which calls came first.
        for layer in (layer for metric in (*self._metrics, self.mean) for layer in metric.layers):
            layer.inputs.decomposed()
            layer.outputs.decomposed()

    def at(
        self,
        damping: float,
        scales: Sequence[float] | None = None,
        start: Tensor | None = None,  # (n,)
    ) -> Tensor:  # (n,)
        """Return the mean for a damping.

        Args:
            damping: Relative damping: mu of a layer is this share of the mean eigenvalue of the
                layer's summed metrics, and outside of layers this share of the smallest of these
                means. Spectra of layers differ by orders of magnitude.
            scales: Factors that replace the s_i of the constructor; mu does not change.
            start: Initial point of the solver; None takes the anchor.
        """
        x = self._anchor if start is None else start
        right = self._pull(x, scales)
        if start is not None:
            self._add_damped(right, damping, self._anchor - start)
        found = self._solve(right, damping, scales)
        for out, part in paged.in_parts(found, x):
            out += part
        return found

    def drifts(
        self,
        w: Tensor,  # (n,)
    ) -> list[float]:
        """Return the drifts (w - w_i)' g_i (w - w_i) of a point."""
        pairs = zip(self._metrics, self._points, strict=True)
        return [metric.squared_distance(w, point) for metric, point in pairs]

    def pulls(
        self,
        w: Tensor,  # (n,)
    ) -> list[Tensor]:  # k times (n,)
        """Return g_i (w - w_i), half the gradient of each drift, at a point."""
        pairs = zip(self._metrics, self._points, strict=True)
        return [metric.mv(w - point) for metric, point in pairs]

    def response(
        self,
        v: Tensor,  # (n,)
        damping: float,
        scales: Sequence[float],
    ) -> Tensor:  # (n,)
        """Return (sum_i s_i g_i + k mu)^-1 v, the response of the mean to a force v.

        Args:
            v: Vector, shape (n,).
            damping: Damping, as in :meth:`at`.
            scales: Factors that replace the s_i of the constructor.
        """
        return self._solve(v, damping, scales)

    def _mus(self, damping: float) -> tuple[list[float], float]:
        """Return mu of each layer, and of the weights outside of layers."""
        means = [max(_mean_eigenvalue(layer), 1e-30) for layer in self.mean.layers]
        least = min(means, default=None)
        if self._smallest is not None:
            least = self._smallest(least)
        return [damping * mean for mean in means], damping * (1.0 if least is None else least)

    def _add_damped(self, out: Tensor, damping: float, v: Tensor) -> None:
        """Add k mu v to a vector, with the mu of each layer."""
        mus, outside = self._mus(damping)
        count = len(self._metrics)
        for layer, mu in zip(self.mean.layers, mus, strict=True):
            layer.write(layer.matrix(out) + count * mu * layer.matrix(v), out)
        for place, _ in self.mean.diagonals:
            out[place] += count * outside * v[place]

    def _solve(
        self,
        right: Tensor,  # (n,)
        damping: float,
        scales: Sequence[float] | None,
    ) -> Tensor:  # (n,)
        """Solve layer by layer, so that temporaries have the size of one layer."""
        mus, outside = self._mus(damping)
        known = list(zip(self._metrics, scales or self._scales, strict=True))
        x = _zeros_like(right)
        for layer, mu in zip(self.mean.layers, mus, strict=True):
            found = self._solve_layer(layer, mu, _part(right, layer), known)
            layer.write(layer.alone.matrix(found), x)
            paged.give_back()
        diagonals = [(dict(_by_start(metric)), scale) for metric, scale in known]
        for place, _ in self.mean.diagonals:
            there = [(own[place.start], scale) for own, scale in diagonals if place.start in own]
            vectors = (x[place], right[place], *(diagonal for diagonal, _ in there))
            for out, part, *terms in paged.in_parts(*vectors):
                total = torch.full_like(part, len(known) * outside)
                for diagonal, (_, scale) in zip(terms, there, strict=True):
                    total += scale * diagonal
                torch.div(part, total, out=out)
        return x

    def _solve_layer(
        self,
        layer: KroneckerLayer,
        mu: float,
        right: Tensor,  # (size of the layer,)
        known: Sequence[tuple[KroneckerMetric, float]],
    ) -> Tensor:  # (size of the layer,)
        """Solve in one layer by conjugate gradients."""
        count, own = len(known), layer.alone
        layers = [(_same_layer(metric, layer), scale) for metric, scale in known]
        terms = [(term.alone, scale) for term, scale in layers if term is not None]
        if len(terms) == count and spans_all(layer, [term for term, _ in terms]):
            out = torch.empty_like(right)
            own.write(solve_in_joint_eigenspace(own, terms, count * mu, own.matrix(right)), out)
            return out
        products = [(_product_of(metric, layer), scale) for metric, scale in known]

        def total(v: Tensor) -> Tensor:
            image = count * mu * v
            for product, scale in products:
                image += scale * product(v)
            return image

        def preconditioned(v: Tensor) -> Tensor:  # (k ((mean A) x (mean B) + mu))^-1 v
            out = torch.empty_like(v)
            own.apply(partial(_inverse, mu), v, out)
            return out.div_(count)

        return conjugate_gradients(total, preconditioned, right)

    def _pull(self, x: Tensor, scales: Sequence[float] | None) -> Tensor:  # (n,)
        total = _zeros_like(x)
        terms = zip(self._metrics, self._points, scales or self._scales, strict=True)
        for metric, point, scale in terms:
            for layer in metric.layers:
                gap, alone = _part(point, layer) - _part(x, layer), layer.alone
                image = torch.empty_like(gap)
                alone.mv(gap, image)
                image = layer.matrix(total) + scale * alone.matrix(image)
                layer.write(image, total)
                layer.release(total, point, x)
            for place, diagonal in metric.diagonals:
                vectors = (total[place], point[place], x[place], diagonal)
                for out, there, here, part in paged.in_parts(*vectors):
                    out += scale * ((there - here) * part)
        return total


def _zeros_like(v: Tensor) -> Tensor:  # (n,)
    zeros = paged.empty(len(v), v.dtype, v.device)
    for (part,) in paged.in_parts(zeros):
        part.zero_()
    return zeros


def _part(
    v: Tensor,  # (n,)
    layer: KroneckerLayer,
) -> Tensor:  # (size of the layer,)
    return layer.matrix(v).flatten()


def _same_layer(metric: KroneckerMetric, layer: KroneckerLayer) -> KroneckerLayer | None:
    """Return a metric's layer of the same weights; None where it has a diagonal."""
    return next((own for own in metric.layers if own.places == layer.places), None)


def _product_of(metric: KroneckerMetric, layer: KroneckerLayer) -> Callable[[Tensor], Tensor]:
    """Return the product of a metric, which may be diagonal there, with vectors of a layer."""
    own = _same_layer(metric, layer)
    if own is not None:
        alone = own.alone

        def product(v: Tensor) -> Tensor:
            out = torch.empty_like(v)
            alone.mv(v, out)
            return out

        return product
    diagonal = metric.diagonal.new_zeros(metric.n)
    for place, part in metric.diagonals:
        diagonal[place] = part
    there = _part(diagonal, layer)
    return lambda v: there * v


def _by_start(metric: KroneckerMetric) -> Iterator[tuple[int, Tensor]]:
    return ((place.start, diagonal) for place, diagonal in metric.diagonals)


def _inverse(mu: float, eigenvalues: Tensor) -> Tensor:
    return 1 / (eigenvalues + mu)


def _mean_eigenvalue(layer: KroneckerLayer) -> float:
    return layer.trace / (layer.inputs.size * layer.outputs.size)
