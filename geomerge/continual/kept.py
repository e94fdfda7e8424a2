"""Budgets of remembered functions: rows of a quadratic program, only where a step needs them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geomerge.continual.grown import carry_metric, carry_weights
from geomerge.continual.memory import NetworkOf, TaskMemory
from geomerge.metrics import Metric
from geomerge.steps import preconditioned_step
from geomerge.walks.constraints import ConstrainedStep, Constraints, QuadraticConstraint

__all__ = ["DriftConstraints", "quadratic_drifts"]


def quadratic_drifts(
    memory: Sequence[TaskMemory],
    network_of: NetworkOf,
    w: Tensor,  # (n,)
) -> list[QuadraticConstraint]:
    """Return what each sketch says of a change: (w - w_k)' g_k (w - w_k).

    Args:
        memory: Remembered tasks.
        network_of: The network as a function of each head's inputs.
        w: The weights before, where new weights come from.
    """
    found = []
    for task in memory:
        if task.sketch is not None:
            network = network_of(task.head)
            metric = carry_metric(task.sketch, task.shapes, network)
            origin = carry_weights(task.origin, task.shapes, network, w)
            found.append(QuadraticConstraint(task.name, metric, origin))
    return found


class DriftConstraints(Constraints):
    """Budgets of quadratic drifts.

    A drift is convex and a row its tangent: where every drift is within its budget after the step
    without budgets, that step keeps every row and is the program's solution. Rows are made, and a
    program solved, only where that is not so.

    Args:
        kept: The drifts.
        allowed: How large each may become; one that is larger already may only not grow.
    """

    def __init__(self, kept: Sequence[QuadraticConstraint], allowed: float) -> None:
        names = [k.name for k in kept]
        super().__init__(kept, dict.fromkeys(names, allowed), dict.fromkeys(names, 0.0))
        self.rows = 0

    def step(
        self,
        w: Tensor,  # (n,)
        metric: Metric,
        v: Tensor,  # (n,)
        damping: float,
        beta: float,
    ) -> ConstrainedStep:
        """Return the step, solved anew and shortened where it would break a budget."""
        rate = beta / (2 * (metric.min_eigenvalue + damping))
        tangent, predicted = preconditioned_step(metric, v, damping, rate)
        if self.within(w + tangent):
            return ConstrainedStep(tangent, predicted, {})
        self.rows += len(self.limits)
        return super().step(w, metric, v, damping, beta)
