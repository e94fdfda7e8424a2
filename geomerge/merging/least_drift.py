r"""Least predicted drift under budgets: a quadratic program in the prices of the networks' drifts.

Of points w with the drifts :math:`Q_i = (w - w_i)' g_i (w - w_i)` the sum :math:`\sum_i s_i Q_i` is
least, or the largest :math:`s_i Q_i`, under :math:`Q_j \le d_j`. For given prices of the drifts the
point is a weighted Kronecker mean; prices are what the dual program has as variables, k for the
largest and one for each budget, whatever the number of weights. Newton's steps of the dual are
quadratic programs with the gradient :math:`(s_i Q_i, Q_j - d_j)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.metrics.kronecker.mean import KroneckerMean
from geomerge.steps import solve_qp

__all__ = ["LEAST", "LeastDrift", "least_drift"]

LEAST = ("sum", "worst")
_STEPS = 12
_TOLERANCE = 1e-3  # of a limit, and of the difference between the largest drifts
_ROUNDING = 1e-12  # of the largest price
_LEAST = 1e-6  # least eigenvalue of a program, relative to its diagonal
_PRICE = 1e4  # most of a budget, times the mean scale: limits that contradict stay violated


@dataclass(frozen=True)
class LeastDrift:
    """Point of least predicted drift.

    Attributes:
        w: Point, shape (n,).
        drifts: Predicted drift from each network.
        scales: Factor of each network's metric in the mean that the point is.
        prices: Shadow price of each budget by the place of its network: the decrease of the
            objective per unit of its limit.
        programs: Number of quadratic programs solved.
        residual: Largest residual of their optimality conditions.
    """

    w: Tensor
    drifts: list[float]
    scales: list[float]
    prices: dict[int, float]
    programs: int
    residual: float


def least_drift(
    mean: KroneckerMean,
    damping: float,
    weights: Sequence[float],
    limits: Mapping[int, float] | None = None,
    *,
    worst: bool = False,
) -> LeastDrift:
    """Return the point of least weighted drift from all networks that keeps budgets.

    Args:
        mean: Solver for the mean of the networks in their metrics.
        damping: Damping of the mean, as a share of each layer's mean eigenvalue.
        weights: Weights s_i of the drifts, one for each network.
        limits: Limits d_j of the drifts by the place of their network.
        worst: Whether the largest of the weighted drifts is least, instead of their sum.

    Raises:
        QPError: If a program has no solution that satisfies the optimality conditions.
    """
    # The solver stops within its tolerance of a limit, on either side.
    bounds = {place: limit * (1 - _TOLERANCE) for place, limit in (limits or {}).items()}
    dual = _Dual(list(weights), list(bounds), worst)
    shares = torch.ones(dual.size, dtype=torch.float64)
    shares[dual.free :] = 0.0
    w: Tensor | None = None
    programs, residual = 0, 0.0
    for _ in range(_STEPS):
        scales = dual.scales(shares)
        w = mean.at(damping, scales, w)
        drifts = mean.drifts(w)
        if dual.settled(shares, drifts, bounds):
            break
        pulls = mean.pulls(w)
        moved = [mean.response(pull, damping, scales) for pull in pulls]
        gram = torch.tensor(
            [[2 * float(p.double() @ m.double()) for m in moved] for p in pulls],
            dtype=torch.float64,
        )
        shares, certificate = dual.step(shares, gram, drifts, bounds)
        programs, residual = programs + 1, max(residual, certificate)
    assert w is not None, "there is a step"
    prices = dict(zip(bounds, shares[dual.free :].tolist(), strict=True))
    return LeastDrift(w, drifts, scales, prices, programs, residual)


@dataclass(frozen=True)
class _Dual:
    """Dual program: shares of the drifts in the largest one, and prices of the budgets."""

    weights: list[float]
    bounded: list[int]
    worst: bool

    @property
    def free(self) -> int:
        return len(self.weights) if self.worst else 0

    @property
    def size(self) -> int:
        return self.free + len(self.bounded)

    @property
    def rows(self) -> Tensor:  # (size, k): part of each variable in the scales
        parts = torch.zeros(self.size, len(self.weights), dtype=torch.float64)
        for i in range(self.free):
            parts[i, i] = self.weights[i]
        for j, place in enumerate(self.bounded):
            parts[self.free + j, place] = 1.0
        return parts

    def scales(self, shares: Tensor) -> list[float]:
        fixed = torch.tensor(self.weights, dtype=torch.float64) * (not self.worst)
        return [float(scale) for scale in fixed + shares @ self.rows]

    def settled(self, shares: Tensor, drifts: list[float], bounds: Mapping[int, float]) -> bool:
        slack = [drifts[j] / max(d, 1e-300) - 1 for j, d in bounds.items()]
        over = max([*slack, 0.0])
        prices = shares[self.free :].tolist()
        idle = all(p == 0 or abs(s) < _TOLERANCE for p, s in zip(prices, slack, strict=True))
        if not self.worst:
            return over < _TOLERANCE and idle
        sized = [s * q for s, q in zip(self.weights, drifts, strict=True)]
        top = max(sized)
        equal = all(
            share < _TOLERANCE or top - size < _TOLERANCE * top
            for share, size in zip(shares[: self.free].tolist(), sized, strict=True)
        )
        return over < _TOLERANCE and idle and equal

    def step(
        self, shares: Tensor, gram: Tensor, drifts: list[float], bounds: Mapping[int, float]
    ) -> tuple[Tensor, float]:
        """Return the variables after one Newton step of the dual, and the program's residual."""
        rows, drift = self.rows, torch.tensor(drifts, dtype=torch.float64)
        stiffness = _positive(rows @ gram @ rows.T)
        gradient = rows @ drift
        gradient[self.free :] -= torch.tensor(list(bounds.values()), dtype=torch.float64)
        one = torch.eye(self.size, dtype=torch.float64)
        most = _PRICE * max(sum(self.weights) / len(self.weights), 1e-12)
        sides, ends = [-one, one[self.free :]], [shares, most - shares[self.free :]]
        if self.worst:  # the shares have the sum k
            total = torch.zeros(1, self.size, dtype=torch.float64)
            total[0, : self.free] = 1.0
            sides += [total, -total]
            ends += [torch.zeros(2, dtype=torch.float64)]
        solution = solve_qp(stiffness, -gradient, torch.cat(sides), torch.cat(ends))
        moved = (shares + solution.z[0]).clamp(min=0)
        moved[moved < _ROUNDING * most] = 0.0
        return moved, float(solution.certificate.max())


def _positive(matrix: Tensor) -> Tensor:
    """Return the symmetric part of a matrix, positive definite also where it was rounded."""
    lengths = matrix.diagonal().clamp(min=1e-300).sqrt()
    cosines = (matrix + matrix.T) / 2 / (lengths[:, None] * lengths)
    values, vectors = torch.linalg.eigh(cosines)
    raised: Tensor = (vectors * values.clamp(min=_LEAST)) @ vectors.T
    return raised * (lengths[:, None] * lengths)
