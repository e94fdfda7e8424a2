r"""How damping and budgets should have been: gradients of what was measured after a step.

After a step :math:`\theta` any loss can be measured where it led, with its gradient
:math:`q = \partial L / \partial\theta`. The step is a differentiable function of its damping and
limits, through the active budgets; the chain rule then says how to change them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.metrics import Metric
from geomerge.steps.constraints import StackedCoordinates, nonzero_rows, solve_dual

__all__ = ["step_gradient"]


def step_gradient(
    metric: Metric,
    v: Tensor,  # (n,)
    rows: Tensor,  # (p, n)
    limits: Tensor,  # (p,)
    damping: float,
    beta: float | None,
    q: Tensor,  # (n,)
) -> tuple[float, Tensor]:  # (), (p,)
    """Return the derivatives of a loss by log damping and by the limits of a budget step.

    Args:
        metric: g.
        v: The direction wanted.
        rows: C.
        limits: d.
        damping: mu.
        beta: As given to :func:`~geomerge.steps.budget_step`; None follows mu in the derivative.
        q: The loss's gradient by the step's tangent.

    Returns:
        dL / d log mu, and dL / dd; limits that did not bind have derivative 0.

    Raises:
        NumericalError: If v, rows or limits are not finite.
    """
    limits = limits.cpu().double()
    kept = nonzero_rows(v, rows, limits)
    stack = StackedCoordinates.of(metric, [*rows[kept.to(rows.device)], v, q])
    log_mu = torch.tensor(damping, dtype=torch.float64).log().requires_grad_()
    free_limits = limits.clone().requires_grad_()

    mu = log_mu.exp()
    rise = mu - damping  # zero, with derivative mu: the inner products to first order in it
    gram = (stack.gram(damping) - stack.gram(damping, power=2) * rise) / 2
    wanted = 2 * (metric.min_eigenvalue + mu) if beta is None else beta
    p = len(kept)
    excess = wanted * gram[:p, p] - free_limits[kept]
    multipliers = solve_dual(gram[None, :p, :p], excess[None]).multipliers[0]
    loss = wanted * gram[p + 1, p] - multipliers @ gram[:p, p + 1]  # q' theta
    by_log_mu, by_limits = torch.autograd.grad(loss, [log_mu, free_limits], materialize_grads=True)
    return float(by_log_mu), by_limits
