r"""Mean of several points in a weight space, each weighted by a Kronecker metric of its own.

The mean minimises :math:`\sum_i s_i (w - w_i)' g_i (w - w_i) + k \mu |w - a|^2`, eq. (2) of
arXiv 2012.09605 summed over k networks: the point whose predicted drift from all of them is least.
In a layer the g_i are Kronecker products, whose sum has no closed inverse; conjugate gradients with
the preconditioner (mean A) x (mean B) + mu solve it in some tens of products (Tam, Bansal & Raffel
2023, arXiv 2312.04339, with a Fisher metric). RegMean is the case B_i = I; Fisher merging is the
diagonal, which weights outside of layers have here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric

__all__ = ["KroneckerMean"]

_ITERATIONS = 60
_TOLERANCE = 1e-6  # of the squared residual, in the preconditioner's norm


class KroneckerMean:
    """Solver for weighted means of points in their metrics.

    Args:
        metrics: Metrics g_i of the same network, undamped.
        points: Points w_i, shape (n,) each.
        anchor: Point a of the damping, shape (n,).
        scales: Factors s_i of the metrics; None takes 1.
    """

    def __init__(
        self,
        metrics: Sequence[KroneckerMetric],
        points: Sequence[Tensor],
        anchor: Tensor,
        scales: Sequence[float] | None = None,
    ) -> None:
        self._metrics, self._points, self._anchor = list(metrics), list(points), anchor
        self._scales = list(scales) if scales is not None else [1.0] * len(self._metrics)
        self.mean = self._metrics[0].plus(self._metrics[1:], mean=True)
        self._blocks = _block_numbers(self.mean.layers, len(anchor), anchor.device)

    def at(
        self,
        damping: float,
        scales: Sequence[float] | None = None,
        start: Tensor | None = None,  # (n,)
    ) -> Tensor:  # (n,)
        """Return the mean for a damping.

        Args:
            damping: Damping as a share of the mean eigenvalue: mu of a layer is this share of the
                mean eigenvalue of the sum of its metrics, of a weight outside of layers this share
                of the smallest of these. Spectra of layers differ by orders of magnitude.
            scales: Factors of the metrics in place of those given before; the damping stays.
            start: Point near the mean, from which the solver starts; None takes the anchor.
        """
        mu = self._damping(damping)
        x = self._anchor if start is None else start
        residual = self._pull(x, scales) + len(self._metrics) * mu * (self._anchor - x)
        return x + self._solve(residual, damping, scales)

    def drift_gradients(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[list[float], list[Tensor]]:
        """Return the drifts (w - w_i)' g_i (w - w_i), and half of the gradient of each.

        Args:
            w: Point.
        """
        gaps = [w - point for point in self._points]
        pulls = [metric.mv(gap) for metric, gap in zip(self._metrics, gaps, strict=True)]
        return [float(g.double() @ p.double()) for g, p in zip(gaps, pulls, strict=True)], pulls

    def response(
        self,
        v: Tensor,  # (n,)
        damping: float,
        scales: Sequence[float],
    ) -> Tensor:  # (n,)
        """Return (sum_i s_i g_i + k mu)^-1 v: how far the mean moves where v pulls at it.

        Args:
            v: Vector.
            damping: Damping, as in :meth:`at`.
            scales: Factors s_i.
        """
        return self._solve(v, damping, scales)

    def _mus(self, damping: float) -> tuple[list[float], float]:
        """Return mu of each layer, and of the weights outside of layers."""
        mus = [damping * max(_mean_eigenvalue(layer), 1e-30) for layer in self.mean.layers]
        return mus, min(mus, default=damping)

    def _damping(self, damping: float) -> Tensor:  # (n,)
        mus, outside = self._mus(damping)
        mu = torch.full_like(self._anchor, outside)
        for layer, own in zip(self.mean.layers, mus, strict=True):
            for span in _spans(layer):
                mu[span] = own
        return mu

    def _solve(
        self,
        residual: Tensor,  # (n,)
        damping: float,
        scales: Sequence[float] | None,
    ) -> Tensor:  # (n,)
        """Solve by conjugate gradients, each block of the metrics by steps of its own."""
        count, mu = len(self._metrics), self._damping(damping)
        mus, outside = self._mus(damping)
        x, residual = torch.zeros_like(residual), residual.clone()
        direction = z = self._precondition(residual, mus, outside)
        rho = first = self._dots(residual, z)
        done = first <= 0
        for _ in range(_ITERATIONS):
            if bool(done.all()):
                break
            product = self._product(direction, scales) + count * mu * direction
            alpha = rho / self._dots(direction, product).clamp(min=1e-300)
            alpha[done] = 0.0  # a block that goes on at its rounding errors comes apart
            step = alpha.to(x)[self._blocks]
            x += step * direction
            residual -= step * product
            z = self._precondition(residual, mus, outside)
            after = self._dots(residual, z)
            done |= after <= _TOLERANCE * first
            beta = (after / rho.clamp(min=1e-300)).to(x)[self._blocks]
            direction = z + beta * direction
            rho = after
        return x

    def _product(self, v: Tensor, scales: Sequence[float] | None) -> Tensor:  # (n,)
        total = torch.zeros_like(v)
        for metric, scale in zip(self._metrics, scales or self._scales, strict=True):
            total += scale * metric.mv(v)
        return total

    def _pull(self, x: Tensor, scales: Sequence[float] | None) -> Tensor:  # (n,)
        total = torch.zeros_like(x)
        terms = zip(self._metrics, self._points, scales or self._scales, strict=True)
        for metric, point, scale in terms:
            total += scale * metric.mv(point - x)
        return total

    def _precondition(self, v: Tensor, mus: Sequence[float], outside: float) -> Tensor:  # (n,)
        """Return (k ((mean A) x (mean B) + mu))^-1 v, outside of layers by the diagonal."""
        out = torch.empty_like(v)
        for layer, mu in zip(self.mean.layers, mus, strict=True):
            layer.apply(partial(_inverse, mu), v, out)
        for place, diagonal in self.mean.diagonals:
            out[place] = v[place] / (diagonal + outside)
        return out / len(self._metrics)

    def _dots(self, u: Tensor, v: Tensor) -> Tensor:  # (blocks,)
        """Return the inner product of each block: a layer, or all weights outside of layers."""
        sums = torch.zeros(len(self.mean.layers) + 1, dtype=torch.float64, device=u.device)
        return sums.index_add_(0, self._blocks, u.double() * v.double())


def _inverse(mu: float, eigenvalues: Tensor) -> Tensor:
    return 1 / (eigenvalues + mu)


def _spans(layer: KroneckerLayer) -> list[slice]:
    return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]


def _mean_eigenvalue(layer: KroneckerLayer) -> float:
    size: int = sum(span.stop - span.start for span in _spans(layer))
    return layer.trace / size


def _block_numbers(
    layers: Sequence[KroneckerLayer], n: int, device: torch.device
) -> Tensor:  # (n,)
    numbers = torch.full((n,), len(layers), dtype=torch.long, device=device)
    for k, layer in enumerate(layers):
        for span in _spans(layer):
            numbers[span] = k
    return numbers
