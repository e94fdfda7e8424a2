"""Damping learned along a walk, from what was measured after each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from geomerge.metrics import Metric
from geomerge.steps import step_gradient
from geomerge.walks.state import WalkState

__all__ = ["DampingLearner"]

_RATE = 0.2  # of log mu, in units of the gradient's own size
_MEMORY = 0.9  # of that size
_RANGE = (1e-7, 1.0)


class DampingLearner:
    """Moves log mu down the gradient of the distance measured after a step, through the step.

    The distance is the teacher's on the next inputs plus, where something is kept, what the step
    did to it; both as KL, so that they may be added.

    Args:
        damping: The first mu.
        kept: At a point, the gradient of the kept function's distance; None if nothing is kept.
        state: Where it is; a walk that goes on says with what metric the last step was made.
    """

    def __init__(
        self,
        damping: float,
        kept: Callable[[Tensor], Tensor] | None = None,
        state: WalkState | None = None,
    ) -> None:
        self._kept = kept
        self._state = WalkState() if state is None else state
        self._state.values.setdefault("log", math.log(damping))
        self._state.values.setdefault("size", 0.0)
        self._state.values.setdefault("steps", 0)
        self.metric: Metric | None = None  # of the last step

    def remember(
        self,
        metric: Metric,
        v: Tensor,  # (n,)
        rate: float,
        budgets: tuple[Tensor, Tensor] | None = None,  # (p, n), (p,)
    ) -> None:
        """Keep what the last step was made from: its rows and limits, too."""
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
            w: Where the last step led.
            v: Minus the gradient of the teacher's distance there.
        """
        values, last = self._state.values, self._state.tensors
        if self.metric is None:
            return math.exp(values["log"])
        rate = values["rate"]
        loss = -v if self._kept is None else self._kept(w) - v
        # The step is rate times one with limits that are so many times as wide.
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
