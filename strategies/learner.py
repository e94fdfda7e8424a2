"""Learners of the stream table: a strategy of Avalanche, its training schedule, its memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from geomerge.strategies.pace import Pace

__all__ = [
    "KeptMemory",
    "Learner",
    "Training",
    "make_strategy",
]


@dataclass(frozen=True)
class KeptMemory:
    """Memory that a strategy keeps between experiences apart from the network itself.

    Attributes:
        bytes: Number of bytes.
        examples: Number of stored inputs of earlier experiences.
        labels: Number of labels that the stored memory was made with.
    """

    bytes: int = 0
    examples: int = 0
    labels: int = 0


@dataclass(frozen=True)
class Training:
    """Training that all rows of a table share.

    Attributes:
        model: Network before the first experience; every row gets a copy.
        rate: Learning rate of the first step of each experience.
        epochs: Number of passes over each experience's examples.
        batch: Number of examples per step.
        device: Device that computes.
        turns: Whether quarter turns of images are further classes in training.
    """

    model: nn.Module
    rate: float = 0.05
    epochs: int = 5
    batch: int = 128
    device: str = "cpu"
    turns: bool = False


@dataclass(frozen=True)
class Learner:
    """A strategy that can be trained on a stream and measured.

    Attributes:
        strategy: Strategy of Avalanche.
        pace: Plugin of the strategy that counts examples and steps.
        about: Description of the method and its strength, half a sentence.
        kept: Function that measures the memory kept by now.
        more_passes: Function that counts examples passed forwards and backwards apart from those
            of the strategy's batches.
        whole: Whether it is trained once, on all experiences.
    """

    strategy: Any
    pace: Pace
    about: str
    kept: Callable[[], KeptMemory] = KeptMemory
    more_passes: Callable[[], float] = lambda: 0.0
    whole: bool = False


def make_strategy(
    training: Training,
    kind: Callable[..., Any],
    *plugins: Any,
    storage: Any = None,
    epochs: Callable[[Any], int] | None = None,
    **options: Any,
) -> tuple[Any, Pace]:
    """Return a strategy with its own copy of the network, and its pace.

    Args:
        training: Training that rows share.
        kind: Class of the strategy.
        plugins: Plugins of Avalanche before the pace.
        storage: Storage policy of replay, as :class:`~geomerge.strategies.pace.Pace` takes it.
        epochs: Function of the strategy, as the pace takes it.
        options: Further arguments of ``kind``.
    """
    from geomerge.strategies.avalanche import EvaluationPlugin
    from geomerge.strategies.pace import Pace
    from geomerge.strategies.quarter_turns import QuarterTurns

    model = copy.deepcopy(training.model)
    pace = Pace(training.rate, storage, epochs)
    given = {
        "train_epochs": training.epochs,
        "train_mb_size": training.batch,
        "eval_mb_size": training.batch,
        "device": torch.device(training.device),
        **options,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        strategy = kind(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), training.rate, momentum=0.9),
            plugins=[*plugins, *([QuarterTurns()] if training.turns else []), pace],
            evaluator=EvaluationPlugin(),
            **given,
        )
    return strategy, pace
