"""Baselines missing from Avalanche: averages of weights, and a corrected synaptic intelligence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomerge.strategies.avalanche import SupervisedTemplate, SynapticIntelligencePlugin
from geomerge.strategies.in_place import evaluate_again, write

__all__ = ["AveragedWeights", "SynapticIntelligence"]


class AveragedWeights(SupervisedTemplate):  # type: ignore[misc]
    """The network is the mean of the weights that training on each experience led to.

    Args:
        warm: Whether training starts at the mean so far, which gives a running mean in which the
            newest has weight 1 / t. Else it starts at the first weights, which gives the mean of
            experts.
        options: Arguments that every strategy of Avalanche takes.
    """

    def __init__(self, *, warm: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.warm = warm
        self._first: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes stored between experiences apart from the network: the first weights, if used."""
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


class SynapticIntelligence(SynapticIntelligencePlugin):  # type: ignore[misc]
    """Avalanche's plugin of synaptic intelligence, with memories of its own.

    The copies of weights in avalanche-lib 0.6.0 share their memory on a CPU, where
    ``.cpu().flatten()`` copies nothing: no weight ever seems to move, all importances are 0 and the
    strength has no effect.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Copy the weights before an experience."""
        super().before_training_exp(strategy, **kwargs)
        self._unshare(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Copy the weights before a step."""
        super().before_training_iteration(strategy, **kwargs)
        self._unshare(self.syn_data["old_theta"])

    @staticmethod
    def _unshare(weights: dict[str, Any]) -> None:
        for parameter in weights.values():
            parameter.data = parameter.data.clone()
