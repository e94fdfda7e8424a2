"""Plain training: experience after experience, and on all of them at once."""

from __future__ import annotations

from torch import nn

from geomerge.strategies.learner import Learner, make_strategy
from geomerge.strategies.registry import StreamCase, stream_method

__all__ = ["joint", "naive"]


@stream_method("naive", "plain", "trained on with each experience")
def naive(case: StreamCase) -> Learner:
    """Return training that goes on with each experience and keeps nothing."""
    from geomerge.strategies.avalanche import Naive

    strategy, pace = make_strategy(case.training, Naive)
    return Learner(strategy, pace, "trained on with each experience")


@stream_method("joint", "bounds", "trained on all experiences at once")
def joint(case: StreamCase) -> Learner:
    """Return training on all experiences at once, an upper bound."""
    from geomerge.strategies.avalanche import JointTraining

    strategy, pace = make_strategy(case.training, JointTraining, criterion=nn.CrossEntropyLoss())
    return Learner(strategy, pace, "trained on all experiences at once", whole=True)
