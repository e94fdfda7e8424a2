"""Averages of weights: the running mean, and the mean of experts."""

from __future__ import annotations

from geomerge.strategies.learner import KeptMemory, Learner, make_strategy
from geomerge.strategies.registry import StreamCase, stream_method

__all__ = ["mean", "running_mean"]


@stream_method("running-mean", "averages", "trained on from the mean of the weights so far")
def running_mean(case: StreamCase) -> Learner:
    """Return the running mean of weights, in which the newest has weight 1 / t."""
    return _average(
        case, "trained on from the mean so far, which moves by 1/t of the way", warm=True
    )


@stream_method("mean", "averages", "mean of the weights of experts")
def mean(case: StreamCase) -> Learner:
    """Return the mean of experts that all start at the first weights."""
    return _average(
        case, "mean of the weights of experts that all start at the first weights", warm=False
    )


def _average(case: StreamCase, about: str, *, warm: bool) -> Learner:
    from geomerge.strategies.baselines import AveragedWeights

    strategy, pace = make_strategy(case.training, AveragedWeights, warm=warm)
    return Learner(strategy, pace, about, lambda: KeptMemory(strategy.kept_bytes))
