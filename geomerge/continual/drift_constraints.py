"""Limits of the drift of remembered functions, as constraints of a quadratic program."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geomerge.continual.grown_heads import carry_metric, carry_weights
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
    """Return the quadratic drift (w - w_k)' g_k (w - w_k) of each task with a sketch.

    Tasks without an origin, and the running metric of several, drift from the network before.

    Args:
        memory: Remembered tasks.
        network_of: Function of a head that returns the network with its outputs.
        w: Weights before the experience; weights added since a task was remembered are theirs.
    """
    drifts = []
    for task in memory:
        if (sketch := task.metric) is not None:
            network = network_of(task.head)
            metric = carry_metric(sketch, task.shapes, network)
            known = len(task.origin) > 0
            origin = carry_weights(task.origin, task.shapes, network, w) if known else w
            drifts.append(QuadraticConstraint(task.name, metric, origin))
    return drifts


class DriftConstraints(Constraints):
    """Limits of quadratic drifts.

    A drift is convex and its constraint a tangent: where every drift is within its limit after the
    unconstrained step, that step satisfies every constraint and is the program's solution.
    Constraints are made and a program is solved only in the other cases.

    Args:
        drifts: Quadratic drifts.
        allowed: Limit of each; a drift that is larger already may only not grow.
    """

    def __init__(self, drifts: Sequence[QuadraticConstraint], allowed: float) -> None:
        names = [drift.name for drift in drifts]
        super().__init__(drifts, dict.fromkeys(names, allowed), dict.fromkeys(names, 0.0))
        self.rows = 0

    def step(
        self,
        w: Tensor,  # (n,)
        metric: Metric,
        v: Tensor,  # (n,)
        damping: float,
        beta: float,
    ) -> ConstrainedStep:
        """Return the step, solved again and shortened where it would exceed a limit."""
        rate = beta / (2 * (metric.min_eigenvalue + damping))
        tangent, predicted = preconditioned_step(metric, v, damping, rate)
        if self.within(w + tangent):
            return ConstrainedStep(tangent, predicted, {})
        self.rows += len(self.limits)
        return super().step(w, metric, v, damping, beta)
