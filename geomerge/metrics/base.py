r"""What every metric offers: inner products, and vectors split along its eigendirections.

A metric g is symmetric and positive semidefinite on the weight vectors of one network. A step
needs :math:`(g + \mu I)^{-1} v` for many :math:`\mu`; in the metric's own eigendirections that is
a division, so a metric gives the :class:`EigenCoordinates` of a vector, which also takes it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "EigenCoordinates",
    "EuclideanMetric",
    "MaskedMetric",
    "Metric",
    "by_spectrum",
    "lower",
]


@dataclass(frozen=True)
class EigenCoordinates:
    """A vector v as orthogonal parts, each lying in eigendirections of the metric.

    Attributes:
        parts: Coordinates of v; their squares sum to |v|^2.
        eigenvalues: The metric's eigenvalue of each coordinate, broadcastable to its part.
        compose: Puts coordinates along the same directions together to a vector, shape (n,).
    """

    parts: list[Tensor]
    eigenvalues: list[Tensor]
    compose: Callable[[list[Tensor]], Tensor]

    def sum(self, weight: Callable[[Tensor], Tensor]) -> float:
        """Return the sum over coordinates c with eigenvalue s of weight(s) c^2, in float64."""
        total = 0.0
        for part, eigenvalue in zip(self.parts, self.eigenvalues, strict=True):
            total += float((part.double().square() * weight(eigenvalue.double())).sum())
        return total

    def flat(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the squares of all coordinates and their eigenvalues, in float64."""
        pairs = list(zip(self.parts, self.eigenvalues, strict=True))
        squares = [part.detach().cpu().double().square().numpy().ravel() for part, _ in pairs]
        values = [e.detach().cpu().double().expand(part.shape).numpy().ravel() for part, e in pairs]
        return np.concatenate(squares), np.concatenate(values)

    def scaled(self, factor: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return the coordinates multiplied by factor(eigenvalue)."""
        pairs = zip(self.parts, self.eigenvalues, strict=True)
        return [part * factor(eigenvalue) for part, eigenvalue in pairs]


class Metric(Protocol):
    """An inner product on weight vectors of length n."""

    @property
    def name(self) -> str:
        """Its name in reports and on the command line."""
        ...

    @property
    def floor(self) -> float:
        """Its smallest eigenvalue, 0 for a degenerate metric."""
        ...

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' g v."""
        ...

    def spectrum(
        self,
        v: Tensor,  # (n,)
    ) -> EigenCoordinates:
        """Split v along the metric's eigendirections."""
        ...

    def transformed(
        self,
        v: Tensor,  # (n,)
        function: Callable[[Tensor], Tensor],
    ) -> Tensor:  # (n,)
        """Return h(g) v for a function h of eigenvalues, such as that of a damped inverse."""
        ...


def by_spectrum(
    metric: Metric,
    v: Tensor,  # (n,)
    function: Callable[[Tensor], Tensor],
) -> Tensor:  # (n,)
    """Return h(g) v: scale v along each eigendirection and put it together again."""
    spectrum = metric.spectrum(v)
    return spectrum.compose(spectrum.scaled(function))


class EuclideanMetric:
    """g = I: every weight counts the same, whatever it does.

    Example:
        >>> import torch
        >>> from geomerge.metrics import EuclideanMetric
        >>> EuclideanMetric().inner(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
    """

    name = "euclidean"
    floor = 1.0
    transformed = by_spectrum

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' v."""
        return float(u.double() @ v.double())

    def spectrum(
        self,
        v: Tensor,  # (n,)
    ) -> EigenCoordinates:
        """Return v itself, all of eigenvalue 1."""
        one = torch.ones((), dtype=v.dtype, device=v.device)
        return EigenCoordinates([v], [one], lambda parts: parts[0])


def lower(
    metric: Metric,
    u: Tensor,  # (n,)
) -> Tensor:  # (n,)
    """Return g u: the tangent's index lowered, half the gradient of u' g u."""
    return metric.transformed(u, lambda s: s)


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
    ) -> EigenCoordinates:
        """Split P v along the other metric's eigendirections; what is put together is projected."""
        whole = self._metric.spectrum(self._project(v))
        return EigenCoordinates(
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
