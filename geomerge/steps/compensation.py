r"""Compensation of a move of some weights by the others: a least-squares problem.

.. math:: \min_x\ \tfrac1N |J(d + x) + \kappa r|^2 + \mu |x|^2 \quad \text{with } x = 0
          \text{ outside the survivors } S

This is the compensation of the Optimal Brain Surgeon (Hassibi & Stork 1993) for a set of removed
weights. With the projection P on the survivors S it is the linear system
:math:`(P g P + \mu I) x = -P (g d + \kappa J'r / N)`. Conjugate gradients (Hestenes & Stiefel 1952)
solve it by products with g alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import NumericalError

__all__ = ["Compensation", "compensate"]

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Compensation:
    """Move of the survivors.

    Attributes:
        x: Move, shape (n,), exactly 0.0 outside of the survivors.
        residual: Residual of the system, relative to its right-hand side.
        steps_taken: Number of iterations of conjugate gradients.
    """

    x: Tensor
    residual: float
    steps_taken: int


def compensate(
    product: Callable[[Tensor], Tensor],
    right: Tensor,  # (n,)
    survivors: Tensor,  # (n,)
    damping: float,
    *,
    steps: int,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> Compensation:
    """Solve (P g P + damping I) x = P right on the survivors.

    Every iteration lowers the cost. Stopping early gives a less accurate compensation, but never a
    cost above that of x = 0.

    Args:
        product: Function u -> g u, shapes (n,).
        right: Right-hand side -(g d + kappa J'r / N), half the steepest descent at x = 0.
        survivors: Mask of S.
        damping: Damping mu, positive.
        steps: Largest number of products; iterations end at a relative residual of 1e-6.
        precondition: Function v -> approximation of (g + damping I)^-1 v, symmetric and positive.
            Its result is projected on S, which preserves both properties.

    Returns:
        The compensation.

    Raises:
        NumericalError: If a number is not finite, or the matrix is not positive semidefinite.
    """

    def on_survivors(v: Tensor) -> Tensor:
        return torch.where(survivors, v, 0.0)

    def matrix(v: Tensor) -> Tensor:
        return on_survivors(product(v)) + damping * v

    r = on_survivors(right)
    scale = _positive(_dot(r, r), "right-hand side", zero=True) ** 0.5
    x = torch.zeros_like(right)
    length = _dot(r, r) ** 0.5
    p, slope = torch.zeros_like(x), 1.0
    taken = 0
    while taken < steps and length > _TOLERANCE * scale:
        z = r if precondition is None else on_survivors(precondition(r))
        steeper = _positive(_dot(r, z), "preconditioner")
        p = z + (steeper / slope) * p
        slope = steeper
        q = matrix(p)
        rate = slope / _positive(_dot(p, q), "metric")
        x = x + rate * p
        r = r - rate * q
        length = _dot(r, r) ** 0.5
        taken += 1
    return Compensation(x, length / scale if scale > 0 else 0.0, taken)


def _dot(u: Tensor, v: Tensor) -> float:
    return float(u.double() @ v.double())


def _positive(square: float, name: str, zero: bool = False) -> float:
    if not (0 < square < float("inf") or (zero and square == 0)):
        raise NumericalError(
            f"the {name} of a compensation gives a squared length of {square:.3g}, expected a "
            "positive finite number; check that the weights are finite and the metric symmetric"
        )
    return square
