r"""Rates at which groups of weights move, with optimal compensation: a quadratic program.

Group j (a neuron, a filter, a layer) moves by c_j d_j at a rate :math:`0 \le c_j \le 1`, and the
survivors S by the x that preserves the outputs best. Up to a constant the cost is

.. math:: \tfrac12 c'Qc + p'c = \min_x\ \tfrac1N |J(Dc + x) + \kappa r|^2 + \mu |x|^2,

that is, Optimal Brain Surgeon (Hassibi & Stork 1993) with all interactions between groups, where r
is the current drift of the outputs and :math:`\kappa` the share of it to undo. The program has one
variable per group, whatever the number of weights and inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.steps.qp.solve import solve_qp

__all__ = ["RateProgram", "Rates", "check_progress", "group_rates"]

_ROUNDING = 1e-9  # relative rounding of the progress, a sum of weights
# Smallest cost of a group relative to the largest: smaller ones would ruin the scaling.
_CHEAPEST = 1e-6


@dataclass(frozen=True)
class RateProgram:
    """Cost of moving k groups, on the CPU in float64.

    Attributes:
        hessian: Q, positive semidefinite, shape (k, k).
        linear: Linear term p, shape (k,).
    """

    hessian: Tensor
    linear: Tensor

    def cost(
        self,
        rates: Tensor,  # (k,)
    ) -> float:
        """Return c'Qc / 2 + p'c, the functional change relative to c = 0."""
        c = rates.cpu().double()
        return float(c @ self.hessian @ c / 2 + self.linear @ c)


@dataclass(frozen=True)
class Rates:
    """Optimal rates of the groups.

    Attributes:
        rates: Rates c, shape (k,), differentiable; within [0, 1], and at the bounds up to rounding.
        progress_price: Cost per unit of additional progress.
        prices: Decrease of the cost per unit of each budget, shape (p,).
        slack: Violation of each budget, shape (p,).
        solver: Name of the solver.
        certificate: Residual of the optimality conditions, for a program of order one.
    """

    rates: Tensor
    progress_price: float
    prices: Tensor
    slack: Tensor
    solver: str
    certificate: float


def group_rates(
    program: RateProgram,
    weights: Tensor,  # (k,)
    progress: float,
    *,
    rows: Tensor | None = None,  # (p, k)
    limits: Tensor | None = None,  # (p,)
    price: float = 1e3,
) -> Rates:
    r"""Minimise the cost for a given progress, :math:`\sum_j a_j c_j \ge \tau`.

    Args:
        program: Cost of the groups' moves.
        weights: Progress a of each group's complete move (parameters, operations), not negative.
        progress: Required progress tau, in units of the weights.
        rows: Loss that each group's complete move adds to a class, task or layer; one row per
            budget.
        limits: Largest loss per row; infinity means no limit.
        price: Cost per unit of violation of a budget. Feasible budgets are satisfied if it
            exceeds their shadow prices.

    Returns:
        The rates. Costs of single groups below 1e-6 of the largest are raised to that value.

    Raises:
        OptionError: If a weight is negative, or all groups together make less progress.
        QPError: If a number is not finite or the program cannot be solved.
    """
    k = len(program.linear)
    one = torch.eye(k, dtype=torch.float64)
    weights = weights.detach().cpu().double()
    rows = one[:0] if rows is None else rows.cpu().double()
    limits = one[:0, 0] if limits is None else limits.cpu().double()
    made = one.new_tensor([min(progress, check_progress(weights, progress))])

    diagonal = program.hessian.detach().diagonal()
    raised = (_CHEAPEST * diagonal.amax() - diagonal).clamp(min=0)
    bounds = torch.cat([-one, one, -weights[None], rows])
    solution = solve_qp(
        program.hessian + torch.diag(raised),
        program.linear,
        bounds,
        torch.cat([one.new_zeros(k), one.new_ones(k), -made, limits]),
        soft=torch.arange(len(bounds)) > 2 * k,
        price=price,
    )
    return Rates(
        solution.z[0].clamp(0, 1),
        float(solution.multipliers[0, 2 * k].detach()),
        solution.multipliers[0, 2 * k + 1 :].relu(),
        solution.slack[0, 2 * k + 1 :].relu(),
        solution.solvers[0],
        float(solution.certificate),
    )


def check_progress(
    weights: Tensor,  # (k,)
    progress: float,
) -> float:
    """Check the required progress and return the largest possible one.

    Args:
        weights: Progress of each group's complete move.
        progress: Required progress.

    Raises:
        OptionError: If a weight is negative or not finite, or the progress is out of reach.
    """
    if not ((weights >= 0) & weights.isfinite()).all():
        raise OptionError(
            f"a group adds {float(weights.min()):.3g} to the progress, expected finite numbers "
            "that are not negative; count parameters or operations"
        )
    reach = float(weights.sum())
    if not progress <= reach * (1 + _ROUNDING):
        raise OptionError(
            f"expected a progress of at most {reach:.6g}, that of all groups together, got "
            f"{progress:.6g}; ask for less or offer more groups"
        )
    return reach
