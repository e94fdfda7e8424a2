"""Constraints of a walk: limits on the change of a task, a class or a sketched function.

A constraint is a quantity with a gradient at every point. A step uses its linearisation as a row;
the quantity is measured again after the step, which is shortened until it is within its limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geomerge.metrics import Metric
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.steps import budget_step
from geomerge.walks.objectives import divergence
from geomerge.walks.state import WalkState

__all__ = [
    "ConstrainedStep",
    "Constraint",
    "Constraints",
    "KLConstraint",
    "QuadraticConstraint",
]

_HALVINGS = 6  # halvings of a step that violates a constraint; then the step is zero
_ROUNDING = 1e-6


class Constraint(Protocol):
    """Quantity that a walk may only increase up to a limit."""

    @property
    def name(self) -> str:
        """Name for reports."""
        ...

    def value(
        self,
        w: Tensor,  # (n,)
    ) -> float:
        """Return the quantity at a point."""
        ...

    def row(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the quantity at a point and its gradient, shape (n,)."""
        ...


@dataclass(frozen=True)
class KLConstraint:
    """Mean KL(teacher || network) on inputs of the teacher.

    Attributes:
        name: Name for reports: the teacher's name, such as ``"b"``, or ``"b/3"`` for one class.
        network: Network whose weights are constrained.
        x: Inputs, shape (N, ...).
        targets: Log-probabilities of the teacher on the inputs, shape (N, m).
    """

    name: str
    network: Network
    x: Batch
    targets: Tensor

    def value(
        self,
        w: Tensor,  # (n,)
    ) -> float:
        """Return the mean KL at a point."""
        log_p = self.network.logits(w, self.x).log_softmax(dim=1)
        distance = torch.nn.functional.kl_div(
            log_p, self.targets, log_target=True, reduction="batchmean"
        )
        return float(distance)

    def row(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the mean KL at a point and its gradient."""
        return self.network.gradient(w, self.x, divergence(self.targets))


@dataclass(frozen=True)
class QuadraticConstraint:
    """Functional change (w - w_0)' g (w - w_0) predicted by a sketch, without inputs.

    Attributes:
        name: Name of the network.
        metric: Metric g, measured at the network.
        origin: Weights w_0 of the network, shape (n,).
    """

    name: str
    metric: Metric
    origin: Tensor

    def value(
        self,
        w: Tensor,  # (n,)
    ) -> float:
        """Return the predicted change."""
        gap = w - self.origin
        return self.metric.inner(gap, gap)

    def row(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the predicted change and its gradient 2 g (w - w_0)."""
        gap = w - self.origin
        lowered = self.metric.mv(gap)
        return float((gap * lowered).sum(dtype=torch.float64)), 2 * lowered


@dataclass(frozen=True)
class ConstrainedStep:
    """Step that satisfies all constraints.

    Attributes:
        tangent: Step theta, shape (n,).
        predicted: Predicted functional change theta' g theta.
        multipliers: Shadow prices of the active constraints, by name.
    """

    tangent: Tensor
    predicted: float
    multipliers: dict[str, float]


class Constraints:
    """Constraints of a walk with their limits.

    Args:
        constraints: Constrained quantities.
        allowed: Largest increase of each quantity above its best value, by name.
        best: Smallest value of each quantity so far, by name: 0 for functions of the start, and
            decreasing along the walk for learned functions.
        state: State of the walk, for resuming.

    Attributes:
        last: Rows and limits of the last step.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        allowed: Mapping[str, float],
        best: Mapping[str, float],
        state: WalkState | None = None,
    ) -> None:
        self._constraints = list(constraints)
        self._allowed = dict(allowed)
        self.last: tuple[Tensor, Tensor] | None = None
        self._values = (WalkState() if state is None else state).values
        self._best = self._values.setdefault("best", dict(best))
        self._values.setdefault("solved", 0)
        self._values.setdefault("shortened", 0)
        self._values.setdefault("residual", 0.0)

    @property
    def solved(self) -> int:
        """Number of steps whose unconstrained solution violated a row."""
        return int(self._values["solved"])

    @property
    def shortened(self) -> int:
        """Number of steps that were shortened to satisfy a constraint."""
        return int(self._values["shortened"])

    @property
    def residual(self) -> float:
        """Largest residual of the optimality conditions of all solved programs."""
        return float(self._values["residual"])

    @property
    def limits(self) -> dict[str, float]:
        """Largest allowed value of each quantity now, by name."""
        return {name: self._best[name] + self._allowed[name] for name in self._best}

    def note(self, programs: int, residual: float) -> None:
        """Count quadratic programs that were solved outside of steps, with their residual."""
        self._values["solved"] += programs
        self._values["residual"] = max(self._values["residual"], residual)

    def values(
        self,
        w: Tensor,  # (n,)
    ) -> dict[str, float]:
        """Return all quantities at a point, by name."""
        return {k.name: k.value(w) for k in self._constraints}

    def within(
        self,
        w: Tensor,  # (n,)
    ) -> bool:
        """Return whether a point satisfies all constraints."""
        limits = self.limits
        return all(v <= limits[name] * (1 + _ROUNDING) for name, v in self.values(w).items())

    def step(
        self,
        w: Tensor,  # (n,)
        metric: Metric,
        v: Tensor,  # (n,)
        damping: float,
        beta: float,
    ) -> ConstrainedStep:
        """Solve eq. (7) with the constraints' rows, and halve the step until all are satisfied.

        Args:
            w: Start of the step.
            metric: Metric g.
            v: Direction of the step.
            damping: Damping mu.
            beta: Weight of the direction against the functional change.
        """
        rows = [k.row(w) for k in self._constraints]
        for constraint, (value, _) in zip(self._constraints, rows, strict=True):
            self._best[constraint.name] = min(self._best[constraint.name], value)
        limits = torch.tensor([self.limits[k.name] for k in self._constraints], dtype=torch.float64)
        values = torch.tensor([value for value, _ in rows], dtype=torch.float64)
        gradients = torch.stack([gradient for _, gradient in rows])
        self.last = (gradients, limits - values)
        step = budget_step(metric, v, gradients, limits - values, damping, beta)
        self._values["solved"] += step.called_qp
        self._values["residual"] = max(self._values["residual"], step.residual)
        # A quantity above its limit may not increase.
        ceiling = torch.maximum(limits * (1 + _ROUNDING), values)
        share = 1.0
        for _ in range(_HALVINGS):
            if all(
                k.value(w + share * step.tangent) <= float(top)
                for k, top in zip(self._constraints, ceiling, strict=True)
            ):
                break
            share /= 2
        else:
            share = 0.0
        self._values["shortened"] += share < 1
        prices = zip(self._constraints, step.multipliers.tolist(), strict=True)
        return ConstrainedStep(
            share * step.tangent,
            share**2 * step.predicted,
            {k.name: price for k, price in prices if price > 0},
        )
