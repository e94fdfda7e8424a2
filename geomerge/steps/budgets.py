r"""Steps that keep linear budgets: what a step may cost each class, task or layer.

.. math:: \min_\theta\ \theta'(g + \mu I)\theta - \beta\,v'\theta \quad \text{with } C\theta \le d

The p rows of C are gradients of what is kept below the limits d. The step without budgets is
taken where it keeps them; else their shadow prices come from a program in p variables, however
many weights there are. With g = I this is the projection of GEM (Lopez-Paz & Ranzato 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metric import Metric
from geomerge.steps.dual import SpectrumStack, solve_dual

__all__ = ["BudgetStep", "budget_step", "budget_steps", "nonzero_rows"]


@dataclass(frozen=True)
class BudgetStep:
    """A tangent that keeps its budgets, and what they cost it.

    Attributes:
        tangent: theta, shape (n,).
        damping: mu.
        norm: |theta|.
        predicted: theta' g theta, the functional change that the metric predicts.
        multipliers: Shadow prices: by how much the objective would fall per unit by which each
            limit were raised, shape (p,); 0 for rows that are slack.
        excess: C theta - d, shape (p,); over 0 only where limits contradict each other.
        residual: By how much the program's optimality conditions fail; 0 where none was solved.
        called_qp: Whether the step without budgets breaks one, so that a program was solved.
    """

    tangent: Tensor
    damping: float
    norm: float
    predicted: float
    multipliers: Tensor
    excess: Tensor
    residual: float
    called_qp: bool


def budget_step(
    metric: Metric,
    v: Tensor,  # (n,)
    rows: Tensor,  # (p, n)
    limits: Tensor,  # (p,)
    damping: float,
    beta: float | None = None,
) -> BudgetStep:
    """Return the best step that keeps every budget.

    Args:
        metric: g.
        v: The direction wanted.
        rows: C. A row that is zero beside the longest one bounds nothing.
        limits: d; infinity is no limit.
        damping: mu, positive.
        beta: How much reaching v is worth beside the functional change; None ties it to mu as
            2 (floor + mu), the largest that without budgets overshoots v in no direction.

    Returns:
        The step; where limits contradict each other, one that breaks them as little as possible,
        each in units of what reaching it costs.

    Raises:
        NumericalError: If v, rows or limits are not finite.
    """
    dampings = torch.tensor([damping], dtype=torch.float64)
    return budget_steps(metric, v, rows, limits[None], dampings, beta)[0]


def budget_steps(
    metric: Metric,
    v: Tensor,  # (n,)
    rows: Tensor,  # (p, n)
    limits: Tensor,  # (B, p) or (1, p)
    dampings: Tensor,  # (B,) or (1,)
    beta: float | None = None,
) -> list[BudgetStep]:
    """Return a step for each damping and limits, all from one batch of programs.

    Args:
        metric: g.
        v: The direction wanted.
        rows: C.
        limits: d of each step, or of all of them.
        dampings: mu of each step, or of all of them.
        beta: As in :func:`budget_step`.

    Returns:
        What :func:`budget_step` gives for each, in order.

    Raises:
        NumericalError: If v, rows or limits are not finite.
    """
    batch = max(len(limits), len(dampings))
    limits = limits.cpu().double().expand(batch, -1)
    mus = dampings.double().expand(batch).tolist()
    kept = nonzero_rows(v, rows, limits)
    stack = SpectrumStack.of(metric, [*rows[kept.to(rows.device)], v])
    tied = [[2 * (metric.floor + mu) if beta is None else beta] for mu in mus]
    betas = torch.tensor(tied, dtype=torch.float64)

    gram = torch.stack([stack.gram(mu) for mu in mus]) / 2
    dual = solve_dual(gram[:, :-1, :-1], betas * gram[:, :-1, -1] - limits[:, kept])
    multipliers = torch.zeros_like(limits).index_copy(1, kept, dual.multipliers)
    excess = (-limits).index_copy(1, kept, dual.excess)
    coefficients = torch.cat([-dual.multipliers, betas], dim=1) / 2
    steps = []
    for i, mu in enumerate(mus):
        theta = stack.solve(coefficients[i], mu)
        steps.append(
            BudgetStep(
                theta.compose(theta.parts),
                mu,
                theta.sum(torch.ones_like) ** 0.5,
                theta.sum(lambda s: s),
                multipliers[i],
                excess[i],
                float(dual.residuals[i]),
                bool(dual.called_qp[i]),
            )
        )
    return steps


def nonzero_rows(
    v: Tensor,  # (n,)
    rows: Tensor,  # (p, n)
    limits: Tensor,  # (B, p)
) -> Tensor:  # (k,)
    """Return the numbers of the rows that are not zero up to rounding.

    Args:
        v: The direction wanted.
        rows: C.
        limits: d.

    Raises:
        NumericalError: If something is not finite; limits may be infinite upwards.
    """
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu()
    finite = {"direction": v, "rows": lengths, "limits": limits.nan_to_num(torch.nan, 0)}
    for name, tensor in finite.items():
        if not tensor.isfinite().all():
            raise NumericalError(
                f"the {name} of a step with budgets hold NaN or infinity, expected finite numbers; "
                "look for the first step after which the weights are not finite"
            )
    longest = lengths.amax() if len(rows) else 0.0
    kept: Tensor = (lengths > torch.finfo(rows.dtype).eps * longest).nonzero()[:, 0]
    return kept
