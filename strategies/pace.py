"""Training schedule shared by all rows: fast batches, a falling learning rate, counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geomerge.strategies.avalanche import SupervisedPlugin
from geomerge.strategies.examples import BatchLoader

__all__ = ["Pace"]


class Pace(SupervisedPlugin):  # type: ignore[misc]
    """Plugin that gives a strategy its batches and its learning rate.

    Args:
        rate: Learning rate of the first step of each experience; it falls linearly to zero.
        storage: Storage policy of Avalanche, whose buffer is filled after each experience and makes
            half of each later batch; None is no replay.
        epochs: Function of the strategy that returns the epochs of the experience to come; None
            leaves the strategy's own.

    Attributes:
        examples: Number of examples passed in each experience.
        steps: Number of steps of each experience.
    """

    def __init__(
        self, rate: float, storage: Any = None, epochs: Callable[[Any], int] | None = None
    ) -> None:
        super().__init__()
        self._rate = rate
        self._storage = storage
        self._epochs = epochs
        self._step = self._steps = 0
        self.examples: list[int] = []
        self.steps: list[int] = []

    def before_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Replace the loader and count the steps to come."""
        if self._epochs is not None:
            strategy.train_epochs = self._epochs(strategy)
        buffer = None if self._storage is None else self._storage.buffer
        size = strategy.train_mb_size
        strategy.dataloader = BatchLoader(
            strategy.adapted_dataset, size, buffer if buffer else None, size
        )
        self._step, self._steps = 0, strategy.train_epochs * len(strategy.dataloader)
        self.examples.append(0)
        self.steps.append(0)

    def before_update(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Set the learning rate of the step, and count its examples."""
        for group in strategy.optimizer.param_groups:
            group["lr"] = self._rate * max(0.0, 1 - self._step / self._steps)
        self._step += 1
        self.examples[-1] += len(strategy.mb_y)
        self.steps[-1] += 1

    def after_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Store examples of the experience."""
        if self._storage is not None:
            self._storage.post_adapt(strategy, strategy.experience)
