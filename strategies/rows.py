"""A row of a table: a strategy of Avalanche, how it is trained, and what it keeps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from geomerge.strategies.pace import Pace

__all__ = [
    "KeptMemory",
    "StreamRow",
    "Training",
    "make_strategy",
]


@dataclass(frozen=True)
class KeptMemory:
    """What a strategy keeps between experiences beside the network itself.

    Attributes:
        bytes: Of all of it.
        examples: Inputs of earlier experiences that are kept.
        labels: Labels that what is kept was made with.
    """

    bytes: int = 0
    examples: int = 0
    labels: int = 0


@dataclass(frozen=True)
class Training:
    """How rows are trained.

    Attributes:
        model: The network before the first experience; every row gets a copy.
        rate: Learning rate of the first step of each experience.
        epochs: Passes over each experience's examples.
        batch: Examples of a step.
        device: Where to compute.
    """

    model: nn.Module
    rate: float = 0.05
    epochs: int = 5
    batch: int = 128
    device: str = "cpu"


@dataclass(frozen=True)
class StreamRow:
    """A row of the table, ready to be trained.

    Attributes:
        strategy: Of Avalanche.
        pace: Its plugin that counts.
        about: What it does, for people.
        kept: Measures what is kept by now.
        beside: Examples that were passed forwards and backwards beside those of its batches.
        whole: Whether it is trained once, on all experiences.
    """

    strategy: Any
    pace: Pace
    about: str
    kept: Callable[[], KeptMemory]
    beside: Callable[[], float] = lambda: 0.0
    whole: bool = False


def make_strategy(
    training: Training,
    kind: Callable[..., Any],
    *plugins: Any,
    storage: Any = None,
    first_epochs: int | None = None,
    **options: Any,
) -> tuple[Any, Pace]:
    """Return a strategy with its own copy of the network, and its pace.

    Args:
        training: How it is trained.
        kind: Makes it.
        plugins: Before the pace.
        storage: Of replay, as the pace wants it.
        first_epochs: As the pace wants them.
        options: Further arguments of ``kind``.
    """
    model = copy.deepcopy(training.model)
    pace = Pace(training.rate, storage, first_epochs)
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
            plugins=[*plugins, pace],
            evaluator=EvaluationPlugin(),
            **given,
        )
    return strategy, pace
