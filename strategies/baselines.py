"""The rows of a table: each a strategy of Avalanche, trained alike, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from avalanche.training.plugins import (
    EWCPlugin,
    GEMPlugin,
    LwFPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.storage_policy import ExperienceBalancedBuffer
from avalanche.training.supervised import JointTraining, Naive
from torch import Tensor, nn

from geomerge.continual import ContinualOptions
from geomerge.strategies.averages import AveragedWeights
from geomerge.strategies.geodesic_merge import GeodesicMerge
from geomerge.strategies.pace import Pace
from geomerge.strategies.rows import KeptMemory, StreamRow, Training, make_strategy

__all__ = [
    "average",
    "ewc",
    "gem",
    "geodesic",
    "joint",
    "lwf",
    "naive",
    "replay",
    "si",
]

_FLOAT = 4  # bytes of a number
_LABEL = 8


def naive(training: Training) -> StreamRow:
    """Return training that goes on with each experience and keeps nothing."""
    strategy, pace = make_strategy(training, Naive)
    return StreamRow(strategy, pace, "trained on with each experience", KeptMemory)


def average(training: Training, *, warm: bool) -> StreamRow:
    """Return a mean of weights.

    Args:
        training: How it is trained.
        warm: As of :class:`~geomerge.strategies.averages.AveragedWeights`.
    """
    strategy, pace = make_strategy(training, AveragedWeights, warm=warm)
    about = (
        "trained on from the mean so far, which moves by 1/t of the way"
        if warm
        else "mean of the weights of experts that all start at the first weights"
    )
    return StreamRow(strategy, pace, about, lambda: KeptMemory(strategy.kept_bytes))


def ewc(training: Training, strength: float) -> StreamRow:
    """Return elastic weight consolidation (Kirkpatrick et al., PNAS 2017).

    Args:
        training: How it is trained.
        strength: lambda, of the sum over all earlier experiences.
    """
    plugin = EWCPlugin(strength)
    strategy, pace = make_strategy(training, Naive, plugin)

    def kept() -> KeptMemory:
        stored = [plugin.saved_params, plugin.importances]
        tensors = [p.data for kind in stored for one in kind.values() for p in one.values()]
        return KeptMemory(_size(tensors), labels=_passed_once(pace, training))

    about = f"elastic weight consolidation, lambda {strength:g}"
    return StreamRow(strategy, pace, about, kept, lambda: float(_passed_once(pace, training)))


def si(training: Training, strength: float) -> StreamRow:
    """Return synaptic intelligence (Zenke et al., ICML 2017).

    Args:
        training: How it is trained.
        strength: Of the penalty.
    """
    plugin = _SynapticIntelligence(strength)
    strategy, pace = make_strategy(training, Naive, plugin)

    def kept() -> KeptMemory:
        stored = [*plugin.ewc_data, plugin.syn_data["cum_trajectory"]]
        tensors = [p.data for kind in stored for p in kind.values()]
        return KeptMemory(_size(tensors), labels=_passed_once(pace, training))

    return StreamRow(strategy, pace, f"synaptic intelligence, strength {strength:g}", kept)


def lwf(training: Training, alpha: float) -> StreamRow:
    """Return learning without forgetting (Li and Hoiem, ECCV 2016).

    Its teacher is the network as it was when the experience came, so that nothing is kept.

    Args:
        training: How it is trained.
        alpha: Weight of the distillation.
    """
    strategy, pace = make_strategy(training, Naive, LwFPlugin(alpha=alpha, temperature=2))
    return StreamRow(strategy, pace, f"learning without forgetting, alpha {alpha:g}", KeptMemory)


def gem(training: Training, examples: int, experiences: int) -> StreamRow:
    """Return gradient episodic memory (Lopez-Paz and Ranzato, NeurIPS 2017).

    Args:
        training: How it is trained.
        examples: That may be kept in all.
        experiences: Among which they are divided.
    """
    each = max(1, examples // experiences)
    plugin = GEMPlugin(patterns_per_experience=each, memory_strength=0.5)
    strategy, pace = make_strategy(training, Naive, plugin)

    def kept() -> KeptMemory:
        tensors = [*plugin.memory_x.values(), *plugin.memory_y.values()]
        count = sum(len(x) for x in plugin.memory_x.values())
        return KeptMemory(_size(tensors), count, count)

    def beside() -> float:
        return float(sum(steps * each * t for t, steps in enumerate(pace.steps)))

    about = f"gradient episodic memory, {each} examples of each experience"
    return StreamRow(strategy, pace, about, kept, beside)


def replay(training: Training, examples: int) -> StreamRow:
    """Return training in which half of each batch is kept examples.

    Args:
        training: How it is trained.
        examples: That may be kept in all, as many of each experience.
    """
    storage = ExperienceBalancedBuffer(max_size=examples)
    strategy, pace = make_strategy(training, Naive, storage=storage)

    def kept() -> KeptMemory:
        count = len(storage.buffer)
        if not count:
            return KeptMemory()
        inputs = storage.buffer.take(torch.arange(1))[0].numel()
        return KeptMemory(count * (_FLOAT * inputs + _LABEL), count, count)

    return StreamRow(
        strategy, pace, f"half of each batch is drawn from {examples} kept examples", kept
    )


def joint(training: Training) -> StreamRow:
    """Return training on all experiences at once: what could be reached."""
    strategy, pace = make_strategy(training, JointTraining, criterion=nn.CrossEntropyLoss())
    return StreamRow(strategy, pace, "trained on all experiences at once", KeptMemory, whole=True)


def geodesic(training: Training, settings: ContinualOptions, expert_epochs: int) -> StreamRow:
    """Return geomerge's own strategy.

    Args:
        training: How it is trained; the first experience gets all epochs.
        settings: Of the merge.
        expert_epochs: Of each later experience's expert.
    """
    strategy, pace = make_strategy(
        training,
        GeodesicMerge,
        settings=settings,
        train_epochs=expert_epochs,
        first_epochs=training.epochs,
    )

    def kept() -> KeptMemory:
        return KeptMemory(int(strategy.memory_bytes), settings.examples * len(pace.steps))

    def beside() -> float:
        walks = sum(r.passes * r.used["inputs"] for r in strategy.merge_reports)
        # A sketch takes one pass forwards and two backwards of each of its inputs.
        sketched = 2 * settings.sketch_inputs if settings.metric == "kronecker" else 0
        return float(walks + sketched * len(pace.steps))

    plural = "s" if expert_epochs > 1 else ""
    about = f"an expert of {expert_epochs} epoch{plural}, then " if expert_epochs else ""
    about += f"a walk of {settings.epochs:g}"
    about += " with labels" if settings.labels else " toward its function"
    return StreamRow(strategy, pace, about, kept, beside)


class _SynapticIntelligence(SynapticIntelligencePlugin):  # type: ignore[misc]
    """Avalanche's plugin with memories of its own.

    Its copies of weights share their memory on a CPU, where ``.cpu().flatten()`` copies nothing:
    no weight ever seems to move, all importances are 0 and the strength has no effect.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        self._unshare(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_iteration(strategy, **kwargs)
        self._unshare(self.syn_data["old_theta"])

    @staticmethod
    def _unshare(weights: dict[str, Any]) -> None:
        for one in weights.values():
            one.data = one.data.clone()


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def _passed_once(pace: Pace, training: Training) -> int:
    """Return the number of all experiences' examples."""
    return sum(pace.examples) // training.epochs
