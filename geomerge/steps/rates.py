r"""Rates at which groups of weights take their moves, each compensated by the weights that stay.

Group j (a neuron, a filter, a layer) would like to move by d_j, at a rate :math:`0 \le c_j \le 1`;
the survivors S answer with the x that keeps the outputs best. Up to a constant the cost is

.. math:: \tfrac12 c'Qc + p'c = \min_x\ \tfrac1N |J(Dc + x) + \kappa r|^2 + \mu |x|^2,

Optimal Brain Surgeon (Hassibi & Stork 1993) with all interactions between groups, where r is how
far the outputs have drifted already and :math:`\kappa` which part of that is to be undone. The
program has one variable per group, however many weights and inputs there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import NumericalError, OptionError
from geomerge.steps.qp import solve_qp

__all__ = ["RateProgram", "Rates", "galerkin_program", "group_rates", "schur_program"]

_CHUNK = 1 << 22  # numbers brought to float64 at a time
_ROUNDING = 1e-9  # of progress: what sums of weights may miss
# Of the costliest group's cost: one that costs less would set the units of the whole program.
_CHEAPEST = 1e-6


@dataclass(frozen=True)
class RateProgram:
    """The cost of moving k groups, on the CPU in float64.

    Attributes:
        hessian: Q, positive semidefinite, shape (k, k).
        linear: p, shape (k,).
    """

    hessian: Tensor
    linear: Tensor

    def cost(
        self,
        rates: Tensor,  # (k,)
    ) -> float:
        """Return c'Qc / 2 + p'c, the functional change beyond that of c = 0."""
        c = rates.cpu().double()
        return float(c @ self.hessian @ c / 2 + self.linear @ c)


@dataclass(frozen=True)
class Rates:
    """The cheapest rates.

    Attributes:
        rates: c, shape (k,), differentiable; within their bounds, and at them up to rounding.
        progress_price: Cost per unit of progress wanted more.
        prices: Cost that each budget would save per unit by which it were raised, shape (p,).
        slack: By how much each budget is broken, shape (p,).
        solver: Who solved the program.
        certificate: By how much its optimality conditions fail, in units of order one.
    """

    rates: Tensor
    progress_price: float
    prices: Tensor
    slack: Tensor
    solver: str
    certificate: float


def schur_program(
    changes: Tensor,  # (k, M)
    gram: Tensor,  # (M, M)
    damping: float,
    drift: Tensor | None = None,  # (M,)
) -> RateProgram:
    r"""Eliminate the best compensation exactly, on N inputs with M = N m outputs.

    With :math:`K = J_S J_S' / N` and :math:`R = \mu (K + \mu I)^{-1}` the push-through identity
    gives :math:`Q = 2 (JD)'R(JD) / N` and :math:`p = 2 \kappa (JD)'Rr / N`.

    Args:
        changes: J d_j / sqrt(N) as rows: what the groups change without compensation.
        gram: K of the survivors, positive semidefinite.
        damping: mu, positive.
        drift: kappa r / sqrt(N); None is none.

    Returns:
        The program. It costs O(M^3) and does not see the weights.

    Raises:
        NumericalError: If gram + damping I is not positive definite, or something is not finite.
    """
    eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram.double() + damping * eye)
    if failed or not factor.isfinite().all():
        raise NumericalError(
            f"the Gram matrix of the survivors plus a damping of {damping:.1e} is not positive "
            "definite, expected a positive semidefinite one and a damping beyond its rounding "
            "errors; raise the damping"
        )
    pulls = torch.cat([changes, (changes.new_zeros(len(gram)) if drift is None else drift)[None]])
    white = torch.linalg.solve_triangular(factor, pulls.double().mT, upper=False).mT
    return _program(*_products(white[:-1], white[-1]), damping)


def galerkin_program(
    changes: Tensor,  # (k, M)
    drift: Tensor | None = None,  # (M,)
    *,
    compensations: Tensor | None = None,  # (k, n)
    correction: Tensor | None = None,  # (n,)
    damping: float = 0.0,
) -> RateProgram:
    r"""Restrict the program to the compensated moves :math:`d_j + x_j`, however good they are.

    .. math:: Q = 2 [\tilde D' g \tilde D + \mu X'X],\quad
              p = 2 [\tilde D' J'(J x_0 + \kappa r) / N + \mu X'x_0]

    Args:
        changes: J (d_j + x_j) / sqrt(N) as rows; M may be larger than memory holds in M^2.
        drift: (J x_0 + kappa r) / sqrt(N); None is none.
        compensations: x_j as rows; None where the moves are not compensated.
        correction: x_0, what compensates the drift alone; None is none.
        damping: mu, what a compensation costs by its length.

    Returns:
        The program: that of :func:`schur_program` where all compensations are exact.
    """
    quadratic, linear = _products(changes, drift)
    if compensations is not None:
        more = _products(compensations, correction)
        quadratic, linear = quadratic + damping * more[0], linear + damping * more[1]
    return _program(quadratic, linear)


def group_rates(
    program: RateProgram,
    weights: Tensor,  # (k,)
    progress: float,
    *,
    upper: Tensor | None = None,  # (k,)
    rows: Tensor | None = None,  # (p, k)
    limits: Tensor | None = None,  # (p,)
    price: float = 1e3,
) -> Rates:
    r"""Minimise the cost for a given progress, :math:`\sum_j a_j c_j \ge \tau`.

    Args:
        program: The cost of the groups' moves.
        weights: a, how much progress each group's whole move is (parameters, operations), not
            negative.
        progress: tau, in units of the weights.
        upper: Largest rates, such as what a layer's trust region allows; None is 1 for all.
        rows: Budgets: what a class, task or layer loses by each group's whole move.
        limits: What it may lose; infinity is no limit.
        price: Cost per unit by which a budget is broken. Those that can be kept are kept where
            it is over their shadow prices.

    Returns:
        The rates. A group alone is taken to cost at least 1e-6 of what the costliest does. For
        k = 300 the program takes about half a second.

    Raises:
        OptionError: If a weight is negative, or all groups together make less progress.
        NumericalError: If something is not finite or the program cannot be solved.
    """
    k = len(program.linear)
    one = torch.eye(k, dtype=torch.float64)
    weights = weights.detach().cpu().double()
    upper = one.new_ones(k) if upper is None else upper.detach().cpu().double()
    rows = one[:0] if rows is None else rows.cpu().double()
    limits = one[:0, 0] if limits is None else limits.cpu().double()
    reach = check_progress(weights, progress, upper)

    diagonal = program.hessian.detach().diagonal()
    raised = (_CHEAPEST * diagonal.amax() - diagonal).clamp(min=0)
    bounds = torch.cat([-one, one, -weights[None], rows])
    solution = solve_qp(
        program.hessian + torch.diag(raised),
        program.linear,
        bounds,
        torch.cat([one.new_zeros(k), upper, one.new_tensor([-min(progress, reach)]), limits]),
        soft=torch.arange(len(bounds)) > 2 * k,
        price=price,
    )
    return Rates(
        solution.z[0].clamp(min=0).minimum(upper),
        float(solution.multipliers[0, 2 * k].detach()),
        solution.multipliers[0, 2 * k + 1 :].relu(),
        solution.slack[0, 2 * k + 1 :].relu(),
        solution.solvers[0],
        float(solution.certificate),
    )


def check_progress(
    weights: Tensor,  # (k,)
    progress: float,
    upper: Tensor,  # (k,)
) -> float:
    """Return the largest progress that groups can make, refusing one that is out of reach.

    Args:
        weights: How much progress each group's whole move is.
        progress: What is wanted of all.
        upper: Largest rates.

    Raises:
        OptionError: If a weight is negative or not finite, or the progress is out of reach.
    """
    if not ((weights >= 0) & weights.isfinite()).all():
        raise OptionError(
            f"a group counts {float(weights.min()):.3g} towards the progress, expected finite "
            "numbers that are not negative; count parameters or operations"
        )
    reach = float((weights * upper)[weights > 0].sum())
    if not progress <= reach * (1 + _ROUNDING):
        raise OptionError(
            f"a progress of {progress:.6g} is wanted of groups that make {reach:.6g} together, "
            "expected no more than that; ask for less or offer more groups"
        )
    return reach


def _products(
    rows: Tensor,  # (k, n)
    vector: Tensor | None,  # (n,)
) -> tuple[Tensor, Tensor]:  # (k, k), (k,)
    """Return the inner products of rows with each other and with a vector, in float64."""
    k = len(rows)
    square = torch.zeros(k, k, dtype=torch.float64, device=rows.device)
    column = square.new_zeros(k)
    width = max(_CHUNK // max(k, 1), 1)
    for at in range(0, rows.shape[1], width):
        block = rows[:, at : at + width].double()
        square += block @ block.mT
        if vector is not None:
            column += block @ vector[at : at + width].double()
    return square, column


def _program(
    quadratic: Tensor,  # (k, k)
    linear: Tensor,  # (k,)
    factor: float = 1.0,
) -> RateProgram:
    return RateProgram(2 * factor * quadratic.cpu(), 2 * factor * linear.cpu())
