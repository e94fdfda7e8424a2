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

from geomerge.errors import OptionError
from geomerge.steps.qp.solve import solve_qp

__all__ = ["RateProgram", "Rates", "check_progress", "group_rates"]

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
        program: The cost of the groups' moves.
        weights: a, how much progress each group's whole move is (parameters, operations), not
            negative.
        progress: tau, in units of the weights.
        rows: Budgets: what a class, task or layer loses by each group's whole move.
        limits: What it may lose; infinity is no limit.
        price: Cost per unit by which a budget is broken. Those that can be kept are kept where
            it is over their shadow prices.

    Returns:
        The rates. A group alone is taken to cost at least 1e-6 of what the costliest does. For
        k = 300 the program takes about half a second.

    Raises:
        OptionError: If a weight is negative, or all groups together make less progress.
        QPError: If something is not finite or the program cannot be solved.
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
    """Return the largest progress that groups can make, refusing one that is out of reach.

    Args:
        weights: How much progress each group's whole move is.
        progress: What is wanted of all.

    Raises:
        OptionError: If a weight is negative or not finite, or the progress is out of reach.
    """
    if not ((weights >= 0) & weights.isfinite()).all():
        raise OptionError(
            f"a group counts {float(weights.min()):.3g} towards the progress, expected finite "
            "numbers that are not negative; count parameters or operations"
        )
    reach = float(weights.sum())
    if not progress <= reach * (1 + _ROUNDING):
        raise OptionError(
            f"a progress of {progress:.6g} is wanted of groups that make {reach:.6g} together, "
            "expected no more than that; ask for less or offer more groups"
        )
    return reach
