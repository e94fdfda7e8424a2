r"""Gradients of a loss with respect to a step's damping and limits.

A loss measured after a step :math:`\theta` has a gradient :math:`q = \partial L / \partial\theta`.
The step is a differentiable function of its damping and, through the active constraints, of its
limits, so that the chain rule gives the derivatives with respect to both.
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
    """Return derivatives of a loss with respect to a step's log damping and limits.

    Args:
        metric: Metric g.
        v: Direction of the step.
        rows: Rows of C.
        limits: Limits d.
        damping: Damping mu.
        beta: Weight of the direction, as in :func:`~geomerge.steps.budget_step`; for None the
            derivative includes its dependence on mu.
        q: Gradient of the loss with respect to the tangent.

    Returns:
        dL / d log mu, and dL / dd, which is 0 for inactive limits.

    Raises:
        NumericalError: If v, rows or limits are not finite.
    """
    limits = limits.cpu().double()
    used = nonzero_rows(v, rows, limits)
    stack = StackedCoordinates.of(metric, [*rows[used.to(rows.device)], v, q])
    log_mu = torch.tensor(damping, dtype=torch.float64).log().requires_grad_()
    free_limits = limits.clone().requires_grad_()

    mu = log_mu.exp()
    rise = mu - damping  # value 0, derivative mu: the Gram matrix to first order in mu
    gram = (stack.gram(damping) - stack.gram(damping, power=2) * rise) / 2
    weight = 2 * (metric.min_eigenvalue + mu) if beta is None else beta
    p = len(used)
    excess = weight * gram[:p, p] - free_limits[used]
    multipliers = solve_dual(gram[None, :p, :p], excess[None]).multipliers[0]
    loss = weight * gram[p + 1, p] - multipliers @ gram[:p, p + 1]  # q' theta
    by_log_mu, by_limits = torch.autograd.grad(loss, [log_mu, free_limits], materialize_grads=True)
    return float(by_log_mu), by_limits
