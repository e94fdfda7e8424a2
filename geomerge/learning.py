"""Damping learned along a walk, from what was measured after each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from geomerge.metric import Metric
from geomerge.steps import step_gradient

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
    """

    def __init__(self, damping: float, kept: Callable[[Tensor], Tensor] | None = None) -> None:
        self._log = math.log(damping)
        self._kept = kept
        self._size = 0.0
        self._steps = 0
        self._last: tuple[Metric, Tensor, float, Tensor, Tensor] | None = None

    def remember(
        self,
        metric: Metric,
        v: Tensor,  # (n,)
        rate: float,
        budgets: tuple[Tensor, Tensor] | None = None,  # (p, n), (p,)
    ) -> None:
        """Keep what the last step was made from: its rows and limits, too."""
        rows, limits = budgets or (v.new_zeros(0, len(v)), torch.zeros(0))
        self._last = (metric, v, rate, rows, limits)

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
        if self._last is None:
            return math.exp(self._log)
        metric, wanted, rate, rows, limits = self._last
        loss = -v if self._kept is None else self._kept(w) - v
        # The step is rate times one with limits that are so many times as wide.
        gradient, _ = step_gradient(
            metric, wanted, rows, limits / rate, math.exp(self._log), None, rate * loss
        )
        self._steps += 1
        self._size = _MEMORY * self._size + (1 - _MEMORY) * gradient**2
        typical = math.sqrt(self._size / (1 - _MEMORY**self._steps))
        if typical > 0:
            self._log -= _RATE * gradient / typical
        low, high = (math.log(bound) for bound in _RANGE)
        self._log = min(max(self._log, low), high)
        return math.exp(self._log)
