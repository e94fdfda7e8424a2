"""A metric on the plane where some weights do not move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geomerge.metric.base import Metric, Spectrum

__all__ = ["MaskedMetric"]


class MaskedMetric:
    """Another metric, with every vector projected on the weights that may move.

    Steps solved in it leave the others exactly where they are. The damped inverse P (g + mu I)^-1 P
    that it gives is symmetric and positive on the plane, though not the inverse of P g P + mu I.

    Args:
        metric: The metric on all weights.
        free: Mask of the weights that may move, shape (n,).
    """

    def __init__(self, metric: Metric, free: Tensor) -> None:
        self._metric = metric
        self._free = free
        self.name = metric.name
        self.floor = metric.floor

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' P g P v."""
        one = self._project(u)
        return self._metric.inner(one, one if u is v else self._project(v))

    def spectrum(
        self,
        v: Tensor,  # (n,)
    ) -> Spectrum:
        """Split P v along the other metric's eigendirections; what is put together is projected."""
        whole = self._metric.spectrum(self._project(v))
        return Spectrum(
            whole.parts, whole.eigenvalues, lambda parts: self._project(whole.compose(parts))
        )

    def transformed(
        self,
        v: Tensor,  # (n,)
        function: Callable[[Tensor], Tensor],
    ) -> Tensor:  # (n,)
        """Return P h(g) P v."""
        return self._project(self._metric.transformed(self._project(v), function))

    def _project(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        return torch.where(self._free, v, 0.0)
