"""Averages of weights: what continual merging must beat."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from geomerge.strategies.in_place import evaluate_again, write

__all__ = ["AveragedWeights"]


class AveragedWeights(SupervisedTemplate):  # type: ignore[misc]
    """The network is the mean of what training on each experience led to.

    Args:
        warm: Whether training starts at the mean so far, which gives a running mean in which the
            newest has weight 1 / t; else at the first weights, which gives the mean of experts.
        options: As those of every strategy of Avalanche.
    """

    def __init__(self, *, warm: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.warm = warm
        self._first: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes kept between experiences beside the network: the first weights, if they are."""
        return 0 if self.warm else sum(value.nbytes for value in self._first.values())

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        mean = self._weights()
        if not self.warm:
            for name, value in mean.items():
                self._first.setdefault(name, value.clone())
            write(self.model, self._first)
        start = self._weights()
        super()._train_exp(experience, eval_streams, **kwargs)
        merged = {}
        for name, expert in self._weights().items():
            # Heads of other tasks were not trained: the mean is over those that trained a weight.
            if torch.equal(expert, start[name]):
                merged[name] = mean[name]
            else:
                self._count[name] = self._count.get(name, 0) + 1
                merged[name] = mean[name] + (expert - mean[name]) / self._count[name]
        write(self.model, merged)
        evaluate_again(self)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}
