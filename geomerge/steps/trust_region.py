r"""Trust-region step of arXiv 2012.09605, eq. (7), in closed form.

.. math:: \min_\theta\ \theta' g\,\theta - \beta\,\theta' v \quad \text{with } |\theta| \le \rho

The solution is :math:`\theta = \frac{\beta}{2}(g + \mu I)^{-1} v` with a scalar
:math:`\mu \ge 0` that is zero or such that :math:`|\theta| = \rho` (More & Sorensen 1983). In the
eigenbasis of the metric :math:`\mu` is the root of a function of one variable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metrics import EigenCoordinates, Metric

__all__ = [
    "Step",
    "damped_step",
    "precondition",
    "preconditioned_move",
    "preconditioned_step",
    "trust_region_step",
]


_BLOCK = 2**20  # elements of a vector processed at a time, so that they stay in the cache
_LOG_MU = (-16.0, 12.0)  # bounds of log10 mu


@dataclass(frozen=True)
class Step:
    """Tangent with its damping, length and predicted change.

    Attributes:
        tangent: Step theta, shape (n,).
        damping: Damping mu.
        norm: Norm |theta|.
        predicted: Functional change theta' g theta that the metric predicts.
        beta: Weight of the direction v.
    """

    tangent: Tensor
    damping: float
    norm: float
    predicted: float
    beta: float


def damped_step(
    metric: Metric,
    v: Tensor,  # (n,)
    damping: float,
    radius: float,
) -> Step:
    """Return (beta / 2) (g + damping I)^-1 v, shortened to at most ``radius``.

    Args:
        metric: Metric g.
        v: Direction of the step.
        damping: Damping mu, positive.
        radius: Largest length of the step.

    Returns:
        The step. Before shortening, beta is 2 (min_eigenvalue + mu), the largest value for which
        the step overshoots v in no direction.
    """
    coordinates = metric.coordinates(v)
    beta = 2 * (metric.min_eigenvalue + damping)
    norm = _norm(coordinates, beta, damping)
    if norm > radius:
        beta *= radius / norm
    return _step(coordinates, beta, damping)


def trust_region_step(
    metric: Metric,
    v: Tensor,  # (n,)
    radius: float,
    beta: float | None = None,
    guess: float = 1e-6,
) -> Step:
    """Solve eq. (7) with mu from the secular equation |theta(mu)| = radius.

    Args:
        metric: Metric g.
        v: Direction of the step.
        radius: Largest length rho; the paper's bound 0.01 of theta'theta is a radius of 0.1.
        beta: Weight of the direction against the functional change; None sets it to
            2 (min_eigenvalue + mu), for which the step overshoots v in no direction.
        guess: Value of mu to start the search from, such as that of the last step.

    Returns:
        The step; |theta| equals the radius unless the unconstrained minimum lies inside.

    Raises:
        NumericalError: If v is zero or not finite.

    Example:
        >>> import torch
        >>> from geomerge.metrics import EuclideanMetric
        >>> from geomerge.steps import trust_region_step
        >>> v = torch.tensor([3.0, 4.0])
        >>> step = trust_region_step(EuclideanMetric(), v, radius=0.1, beta=10.0)
        >>> step.tangent  # parallel to v, since the metric is isotropic
        tensor([0.0600, 0.0800])
        >>> round(step.norm, 6)
        0.1
    """
    coordinates = metric.coordinates(v)
    length = coordinates.sum(torch.ones_like) ** 0.5
    if not 0 < length < float("inf"):
        raise NumericalError(
            f"the direction of a step has length {length}, expected a positive finite number; the "
            "walk is at its target, or the weights are not finite"
        )

    squares, values = coordinates.flat()
    sign = 1.0 if beta is None else -1.0  # |theta| increases with mu if beta depends on mu

    def excess(log_mu: float) -> float:
        mu: float = 10**log_mu
        factor = metric.min_eigenvalue + mu if beta is None else beta / 2
        norm = factor * float(np.sqrt(squares @ (values + mu) ** -2.0))
        return sign * (norm - radius)

    mu = 10 ** _root(excess, float(np.log10(guess)))
    step_beta = 2 * (metric.min_eigenvalue + mu) if beta is None else beta
    over = _norm(coordinates, step_beta, mu) / radius
    return _step(coordinates, step_beta / max(over, 1.0), mu)


def _root(rising: Callable[[float], float], guess: float) -> float:
    """Return the root of an increasing function of log10 mu, or the nearest end of the range."""
    low = high = min(max(guess, _LOG_MU[0]), _LOG_MU[1])
    width = 0.1
    while rising(low) > 0:
        if low == _LOG_MU[0]:
            return low
        high, low = low, max(low - width, _LOG_MU[0])
        width *= 3
    while low == high or rising(high) < 0:
        if high == _LOG_MU[1]:
            return high
        low, high = high, min(high + width, _LOG_MU[1])
        width *= 3
    return float(brentq(rising, low, high, xtol=1e-9))


def precondition(
    metric: Metric,
    v: Tensor,  # (n,)
    damping: float,
) -> Tensor:  # (n,)
    """Return (min_eigenvalue + mu) (g + mu I)^-1 v: eq. (7) as a preconditioner.

    Components along eigenvectors of the smallest eigenvalue keep their length, in the Euclidean
    metric all components.

    Args:
        metric: Metric g.
        v: Direction of the step.
        damping: Damping mu.
    """
    return metric.damped_solve(v, damping, metric.min_eigenvalue + damping)


def preconditioned_step(
    metric: Metric,
    v: Tensor,  # (n,)
    damping: float,
    rate: float,
) -> tuple[Tensor, float]:  # (n,)
    """Return rate times the preconditioned direction, and its predicted functional change.

    Args:
        metric: Metric g.
        v: Direction of the step.
        damping: Damping mu.
        rate: Factor of the step.
    """
    return metric.damped_inverse(v, damping, metric.min_eigenvalue + damping, rate)


def preconditioned_move(
    metric: Metric,
    w: Tensor,  # (n,)
    v: Tensor,  # (n,)
    damping: float,
    rate: float,
) -> tuple[Tensor, float, float]:  # (n,)
    """Take a :func:`preconditioned_step` from a point.

    Args:
        metric: Metric g.
        w: Point of weight space.
        v: Direction of the step.
        damping: Damping mu.
        rate: Factor of the step.

    Returns:
        End of the step, its length, and its predicted functional change.
    """
    end, change = metric.damped_inverse(v, damping, metric.min_eigenvalue + damping)
    squares = []
    for part, start in zip(end.split(_BLOCK), w.split(_BLOCK), strict=True):
        squares.append(part @ part)
        torch.add(start, part, alpha=rate, out=part)
    return end, rate * _total(squares) ** 0.5, rate**2 * change


def _total(parts: list[Tensor]) -> float:
    return float(parts[0] if len(parts) == 1 else torch.stack(parts).sum(dtype=torch.float64))


def _norm(coordinates: EigenCoordinates, beta: float, damping: float) -> float:
    return float(beta / 2 * coordinates.sum(lambda s: 1 / (s + damping) ** 2) ** 0.5)


def _step(coordinates: EigenCoordinates, beta: float, damping: float) -> Step:
    parts = coordinates.scaled(lambda s: beta / 2 / (s + damping))
    return Step(
        coordinates.compose(parts),
        damping,
        _norm(coordinates, beta, damping),
        (beta**2 / 4) * coordinates.sum(lambda s: s / (s + damping) ** 2),
        beta,
    )
