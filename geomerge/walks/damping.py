"""Learned damping: hypergradient descent on log mu along a walk."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from geomerge.metrics import Metric
from geomerge.steps import step_gradient
from geomerge.walks.state import WalkState

__all__ = ["DampingLearner"]

_RATE = 0.2  # step of log mu per gradient, relative to the gradient's typical size
_MEMORY = 0.9  # decay of the average of squared gradients
_RANGE = (1e-7, 1.0)


class DampingLearner:
    """Learner of the damping, by gradients of the loss measured after each step.

    The loss is the KL to the teacher on the next inputs plus, if a function is preserved, its
    change by the step, in the same unit.

    Args:
        damping: Initial mu.
        drift_gradient: Function of a point that returns the gradient of the preserved function's
            change there; None if no function is preserved.
        state: State of the learner, for resuming. A resumed walk sets :attr:`metric`.

    Attributes:
        metric: Metric of the last step.
    """

    def __init__(
        self,
        damping: float,
        drift_gradient: Callable[[Tensor], Tensor] | None = None,
        state: WalkState | None = None,
    ) -> None:
        self._drift_gradient = drift_gradient
        self._state = WalkState() if state is None else state
        self._state.values.setdefault("log", math.log(damping))
        self._state.values.setdefault("size", 0.0)
        self._state.values.setdefault("steps", 0)
        self.metric: Metric | None = None

    def remember(
        self,
        metric: Metric,
        v: Tensor,  # (n,)
        rate: float,
        budgets: tuple[Tensor, Tensor] | None = None,  # (p, n), (p,)
    ) -> None:
        """Store the inputs of the last step, which its derivatives depend on.

        Args:
            metric: Metric of the step.
            v: Direction of the step.
            rate: Factor of the step.
            budgets: Rows and limits of the step, if it is constrained.
        """
        rows, limits = budgets or (v.new_zeros(0, len(v)), torch.zeros(0))
        self.metric = metric
        self._state.values["rate"] = rate
        self._state.tensors |= {"v": v, "rows": rows, "limits": limits}

    def __call__(
        self,
        w: Tensor,  # (n,)
        v: Tensor,  # (n,)
    ) -> float:
        """Return mu for the next step.

        Args:
            w: End of the last step.
            v: Negative gradient of the distance to the teacher there.
        """
        values, last = self._state.values, self._state.tensors
        if self.metric is None:
            return math.exp(values["log"])
        rate = values["rate"]
        loss = -v if self._drift_gradient is None else self._drift_gradient(w) - v
        # The step is rate times a step with limits that are divided by rate.
        gradient, _ = step_gradient(
            self.metric, last["v"], last["rows"], last["limits"] / rate,
            math.exp(values["log"]), None, rate * loss,
        )  # fmt: skip
        values["steps"] += 1
        values["size"] = _MEMORY * values["size"] + (1 - _MEMORY) * gradient**2
        typical = math.sqrt(values["size"] / (1 - _MEMORY ** values["steps"]))
        if typical > 0:
            values["log"] -= _RATE * gradient / typical
        low, high = (math.log(bound) for bound in _RANGE)
        values["log"] = min(max(values["log"], low), high)
        return math.exp(values["log"])
