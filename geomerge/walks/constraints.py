"""Budgets of a walk: by how much a task, a class or a remembered function may get worse.

A budget is a number measured at any point and its gradient there. A step sees it as one linear
row; the number itself is measured after the step, which is shortened until it lies within.
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

_HALVINGS = 6  # of a step that breaks a budget; then it is not taken
_ROUNDING = 1e-6


class Constraint(Protocol):
    """Something that a walk should not make worse."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    def value(
        self,
        w: Tensor,  # (n,)
    ) -> float:
        """Return how bad it is at a point."""
        ...

    def row(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return how bad it is, and the gradient of that, shape (n,)."""
        ...


@dataclass(frozen=True)
class KLConstraint:
    """Mean KL(teacher || network) on some of the teacher's inputs: worse is farther from it.

    Attributes:
        name: As on the command line, ``"b"`` or ``"b/3"`` for one class.
        network: The network.
        x: Inputs, shape (N, ...).
        targets: The teacher's log-probabilities on them, shape (N, m).
    """

    name: str
    network: Network
    x: Batch
    targets: Tensor

    def value(
        self,
        w: Tensor,  # (n,)
    ) -> float:
        """Return the mean distance at a point."""
        log_p = self.network.logits(w, self.x).log_softmax(dim=1)
        distance = torch.nn.functional.kl_div(
            log_p, self.targets, log_target=True, reduction="batchmean"
        )
        return float(distance)

    def row(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the mean distance at a point and its gradient."""
        return self.network.gradient(w, self.x, divergence(self.targets))


@dataclass(frozen=True)
class QuadraticConstraint:
    """The functional change (w - w_0)' g (w - w_0) that a sketch predicts, where no inputs are.

    Attributes:
        name: The network's name.
        metric: g, measured at the network.
        origin: The network's weights w_0, shape (n,).
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
    """A step that keeps every budget.

    Attributes:
        tangent: theta, shape (n,).
        predicted: theta' g theta.
        multipliers: Shadow prices of the budgets that bound it.
    """

    tangent: Tensor
    predicted: float
    multipliers: dict[str, float]


class Constraints:
    """What may not get worse along a walk, and by how much it may.

    Args:
        kept: What is measured.
        allowed: By how much each may rise above its best value, by name.
        best: The best value of each so far: 0 for what the walk started with, and more, falling
            along the walk, for what it is learning.
        state: Where the walk is.
    """

    def __init__(
        self,
        kept: Sequence[Constraint],
        allowed: Mapping[str, float],
        best: Mapping[str, float],
        state: WalkState | None = None,
    ) -> None:
        self._kept = list(kept)
        self._allowed = dict(allowed)
        self.last: tuple[Tensor, Tensor] | None = None  # rows and limits of the last step
        self._values = (WalkState() if state is None else state).values
        self._best = self._values.setdefault("best", dict(best))
        self._values.setdefault("solved", 0)
        self._values.setdefault("shortened", 0)
        self._values.setdefault("residual", 0.0)

    @property
    def solved(self) -> int:
        """Steps whose closed form broke a row."""
        return int(self._values["solved"])

    @property
    def shortened(self) -> int:
        """Steps that broke a budget after all."""
        return int(self._values["shortened"])

    @property
    def residual(self) -> float:
        """By how much the optimality conditions of a program that was solved fail at most."""
        return float(self._values["residual"])

    @property
    def limits(self) -> dict[str, float]:
        """The largest value that each may have now."""
        return {name: self._best[name] + self._allowed[name] for name in self._best}

    def values(
        self,
        w: Tensor,  # (n,)
    ) -> dict[str, float]:
        """Return what is measured at a point."""
        return {k.name: k.value(w) for k in self._kept}

    def within(
        self,
        w: Tensor,  # (n,)
    ) -> bool:
        """Return whether a point keeps every budget."""
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
        """Solve eq. (7) under the budgets' rows, and shorten the step until all are kept.

        Args:
            w: Where the step starts.
            metric: g.
            v: The direction wanted.
            damping: mu.
            beta: How much reaching v is worth beside the functional change.
        """
        rows = [k.row(w) for k in self._kept]
        for kept, (value, _) in zip(self._kept, rows, strict=True):
            self._best[kept.name] = min(self._best[kept.name], value)
        limits = torch.tensor([self.limits[k.name] for k in self._kept], dtype=torch.float64)
        values = torch.tensor([value for value, _ in rows], dtype=torch.float64)
        gradients = torch.stack([gradient for _, gradient in rows])
        self.last = (gradients, limits - values)
        step = budget_step(metric, v, gradients, limits - values, damping, beta)
        self._values["solved"] += step.called_qp
        self._values["residual"] = max(self._values["residual"], step.residual)
        # What is over its limit already only has to get no worse.
        ceiling = torch.maximum(limits * (1 + _ROUNDING), values)
        share = 1.0
        for _ in range(_HALVINGS):
            if all(
                k.value(w + share * step.tangent) <= float(top)
                for k, top in zip(self._kept, ceiling, strict=True)
            ):
                break
            share /= 2
        else:
            share = 0.0
        self._values["shortened"] += share < 1
        prices = zip(self._kept, step.multipliers.tolist(), strict=True)
        return ConstrainedStep(
            share * step.tangent,
            share**2 * step.predicted,
            {k.name: price for k, price in prices if price > 0},
        )
