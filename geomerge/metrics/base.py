r"""Metrics on weight space: inner products, and coordinates of vectors in the eigenbasis.

A metric g is symmetric and positive semidefinite on the weight vectors of one network. A step
needs :math:`(g + \mu I)^{-1} v` for many :math:`\mu`. In the eigenbasis of g that is a division, so
every metric computes the :class:`EigenCoordinates` of a vector. All other operations have a default
implementation that uses them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomerge.data import Inputs
from geomerge.errors import OptionError
from geomerge.metrics.registry import metric
from geomerge.networks.factor_form import FactorForm
from geomerge.networks.network import Network

if TYPE_CHECKING:
    from geomerge.metrics.kronecker.layer import KroneckerLayer

__all__ = [
    "EigenCoordinates",
    "EuclideanMetric",
    "MaskedMetric",
    "Metric",
    "combine",
    "identity",
    "weighted_inner",
]

M = TypeVar("M", bound="Metric")

_BLOCK = 2**20  # elements of a vector processed at a time, so that they stay in the cache


@dataclass(frozen=True)
class EigenCoordinates:
    """Coordinates of a vector v along eigenvectors of a metric, in orthogonal parts.

    Attributes:
        parts: Coordinates of v; their squares sum to |v|^2.
        eigenvalues: Eigenvalues of the metric, one tensor per part, broadcastable to it.
        compose: Function that returns the vector, shape (n,), of coordinates along the same
            directions.
    """

    parts: list[Tensor]
    eigenvalues: list[Tensor]
    compose: Callable[[list[Tensor]], Tensor]

    def sum(self, weight: Callable[[Tensor], Tensor]) -> float:
        """Return the sum of weight(s) c^2 over coordinates c with eigenvalue s, in float64."""
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


@dataclass(frozen=True)
class _DampedInverse:
    """Function scale / (s + mu) of eigenvalues s; hashable, so that metrics can cache by it."""

    scale: float
    damping: float

    def __call__(self, s: Tensor) -> Tensor:
        return self.scale / (s + self.damping)


def identity(s: Tensor) -> Tensor:
    """Return eigenvalues as they are: h(g) = g."""
    return s


def weighted_inner(
    first: Sequence[Tensor], second: Sequence[Tensor], eigenvalues: Sequence[Tensor]
) -> float:
    """Return the inner product of two vectors' parts, weighted by eigenvalues.

    Args:
        first: Coordinates of one vector, part by part.
        second: Coordinates of the other vector.
        eigenvalues: Eigenvalue of each coordinate, or tensors that broadcast to them.
    """
    total = 0.0
    for p, q, e in zip(first, second, eigenvalues, strict=True):
        total += float((p.double() * q.double() * e.double()).sum())
    return total


class Metric(ABC):
    """An inner product on the weight vectors, shape (n,), of one network.

    A subclass implements :meth:`coordinates`. It overrides :meth:`inner` if the basis of the
    coordinates depends on the vector, and other methods where a cheaper form is known.

    Attributes:
        name: Name in the registry, used by options and reports.
        min_eigenvalue: Smallest eigenvalue, or a lower bound of it.
        isotropic: Whether all eigenvalues are equal, so that damping scales a step without changing
            its direction.
        additive: Whether metrics of one class can be added.
        data_free: Whether the metric needs no inputs after its measurement: it can be stored, and
            steps in it take no passes.
        forms: Forms in which it can be measured and held, from most to least memory.
    """

    name: str
    min_eigenvalue: float = 0.0
    isotropic: bool = False
    additive: bool = False
    data_free: bool = False
    forms: tuple[FactorForm, ...] = (FactorForm.WHOLE,)

    @property
    def diagonal_only(self) -> tuple[str, ...]:
        """Names of the tensors for which only the diagonal of the metric is known."""
        return ()

    @property
    def one_by_one(self) -> tuple[str, ...]:
        """Names of the tensors measured by derivatives of the whole network for each input."""
        return ()

    @property
    def nbytes(self) -> int:
        """Bytes of stored factors; 0 for a metric without factors."""
        return 0

    @abstractmethod
    def coordinates(
        self,
        v: Tensor,  # (n,)
    ) -> EigenCoordinates:
        """Return v in the eigenbasis of the metric."""

    def squared_distance(
        self,
        first: Tensor,  # (n,)
        second: Tensor,  # (n,)
    ) -> float:
        """Return (first - second)' g (first - second)."""
        gap = first - second
        return self.inner(gap, gap)

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' g v."""
        first = self.coordinates(u)
        second = first if u is v else self.coordinates(v)
        return weighted_inner(first.parts, second.parts, first.eigenvalues)

    def apply(
        self,
        function: Callable[[Tensor], Tensor],
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return h(g) v.

        Args:
            function: Function h of eigenvalues, tensors of any shape.
            v: Vector.
        """
        coordinates = self.coordinates(v)
        return coordinates.compose(coordinates.scaled(function))

    def mv(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return g v, half the gradient of v' g v."""
        return self.apply(identity, v)

    def damped_solve(
        self,
        v: Tensor,  # (n,)
        damping: float,
        scale: float = 1.0,
    ) -> Tensor:  # (n,)
        """Return scale (g + damping I)^-1 v."""
        return self.apply(_DampedInverse(scale, damping), v)

    def damped_inverse(
        self,
        v: Tensor,  # (n,)
        damping: float,
        scale: float = 1.0,
        rate: float = 1.0,
    ) -> tuple[Tensor, float]:  # (n,), ()
        """Return x = rate scale (g + damping I)^-1 v and x' g x.

        Args:
            v: Vector.
            damping: Damping mu, positive if the metric is singular.
            scale: Factor of the inverse. Keep it constant over steps where possible: metrics cache
                functions of eigenvalues.
            rate: Factor of the result.
        """
        x = self._damped(v, damping, scale, rate)
        if not (whole := rate * scale):
            return x, 0.0
        # g x = rate scale v - mu x by the definition of x, which saves a second product.
        products = [
            part @ torch.sub(right, part, alpha=damping / whole)
            for part, right in zip(x.split(_BLOCK), v.split(_BLOCK), strict=True)
        ]
        return x, max(whole * _total(products), 0.0)

    def _damped(self, v: Tensor, damping: float, scale: float, rate: float) -> Tensor:
        x = self.damped_solve(v, damping, scale)
        return x if rate == 1 else x.mul_(rate)

    def truncate(self: M, damping: float) -> M:
        """Return a cheaper metric that is as accurate for steps with a given damping.

        Args:
            damping: Damping mu of later steps.
        """
        return self

    def diagonal_of(self, function: Callable[[Tensor], Tensor]) -> Tensor | None:  # (n,)
        """Return the diagonal of h(g), such as that of a damped inverse.

        Args:
            function: Function h of eigenvalues, tensors of any shape.

        Returns:
            The diagonal; None if it is the same for all weights, or unknown.
        """
        return None

    def layer_at(self, place: slice) -> KroneckerLayer | None:
        """Return the Kronecker factors of the weight matrix at a slice of the weight vector.

        Args:
            place: Slice of the weight vector that holds exactly the matrix.

        Returns:
            The factors; None if the metric has none there.
        """
        return None

    def plus(self: M, others: Sequence[M], *, mean: bool) -> M:
        """Return the sum or the mean of this metric and others on the same weights.

        Raises:
            OptionError: If metrics of this kind cannot be added.
        """
        raise OptionError(
            f"{self.name} metrics of several functions cannot be added; use metric 'kronecker', or "
            "inputs of one shape and one block of outputs, on which they are measured at once"
        )


def combine(metrics: Sequence[M], *, mean: bool = False) -> M:
    """Return a metric for the sum, or the mean, of metrics on the same weights.

    Args:
        metrics: Metrics of one kind and one network, at least one.
        mean: Whether to divide the sum by the number of metrics.

    Raises:
        OptionError: If there are several and metrics of this kind cannot be added.
    """
    first, *others = metrics
    return first.plus(others, mean=mean) if others else first


class EuclideanMetric(Metric):
    """Euclidean metric g = I, in which all weights count equally.

    Example:
        >>> import torch
        >>> from geomerge.metrics import EuclideanMetric
        >>> EuclideanMetric().inner(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
    """

    name = "euclidean"
    min_eigenvalue = 1.0
    isotropic = True
    additive = True
    data_free = True

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' v."""
        return float(u.double() @ v.double())

    def coordinates(
        self,
        v: Tensor,  # (n,)
    ) -> EigenCoordinates:
        """Return v itself, with eigenvalue 1."""
        unit = torch.ones((), dtype=v.dtype, device=v.device)
        return EigenCoordinates([v], [unit], lambda parts: parts[0])

    def plus(self, others: Sequence[EuclideanMetric], *, mean: bool) -> EuclideanMetric:
        """Return the metric itself, since its scale is arbitrary."""
        return self


@metric(EuclideanMetric, "all weights count equally", needs_inputs=False)
def _measure(
    network: Network, w: Tensor, inputs: Inputs, output: str, seed: int
) -> EuclideanMetric:
    return EuclideanMetric()


class MaskedMetric(Metric):
    """A metric restricted to free weights, onto which vectors are projected.

    Steps leave all other weights exactly unchanged. The damped inverse
    P (g + mu I)^-1 P is symmetric and positive on the free weights, but it is not the inverse of
    P g P + mu I.

    Args:
        metric: Metric on all weights.
        free: Mask of the free weights, shape (n,).
    """

    def __init__(self, metric: Metric, free: Tensor) -> None:
        self._metric = metric
        self._free = free
        self.name = metric.name
        self.min_eigenvalue = metric.min_eigenvalue
        self.isotropic = metric.isotropic
        self.data_free = metric.data_free

    @property
    def diagonal_only(self) -> tuple[str, ...]:
        """Those of the metric on all weights."""
        return self._metric.diagonal_only

    @property
    def nbytes(self) -> int:
        """Those of the metric on all weights."""
        return self._metric.nbytes

    def inner(
        self,
        u: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return u' P g P v."""
        projected = self._project(u)
        return self._metric.inner(projected, projected if u is v else self._project(v))

    def coordinates(
        self,
        v: Tensor,  # (n,)
    ) -> EigenCoordinates:
        """Return P v in the eigenbasis of the metric on all weights; composing projects."""
        whole = self._metric.coordinates(self._project(v))
        return EigenCoordinates(
            whole.parts, whole.eigenvalues, lambda parts: self._project(whole.compose(parts))
        )

    def apply(
        self,
        function: Callable[[Tensor], Tensor],
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return P h(g) P v."""
        return self._project(self._metric.apply(function, self._project(v)))

    def damped_inverse(
        self,
        v: Tensor,  # (n,)
        damping: float,
        scale: float = 1.0,
        rate: float = 1.0,
    ) -> tuple[Tensor, float]:  # (n,), ()
        """Return x = rate scale P (g + damping I)^-1 P v and x' g x."""
        x = self._damped(v, damping, scale, rate)
        return x, self.inner(x, x)  # x solves no equation with P g P, so g x needs a product

    def truncate(self, damping: float) -> MaskedMetric:
        """Return the truncated metric with the same mask."""
        return MaskedMetric(self._metric.truncate(damping), self._free)

    def _project(
        self,
        v: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        return torch.where(self._free, v, 0.0)


def _total(parts: list[Tensor]) -> float:
    return float(parts[0] if len(parts) == 1 else torch.stack(parts).sum(dtype=torch.float64))
