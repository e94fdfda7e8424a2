"""Memories of labelled examples: replay, and gradient episodic memory."""

from __future__ import annotations

import torch

from geomerge.strategies.learner import KeptMemory, Learner, make_strategy
from geomerge.strategies.registry import StreamCase, stream_method

__all__ = ["gem", "replay"]

_FLOAT = 4  # bytes of a number
_LABEL = 8


@stream_method("gem", "memory", "gradient episodic memory (Lopez-Paz and Ranzato, NeurIPS 2017)")
def gem(case: StreamCase) -> Learner:
    """Return GEM, which keeps as many examples in all as the first replay row."""
    from geomerge.strategies.avalanche import GEMPlugin, Naive

    each = max(1, case.options.baselines.memory_examples[0] // case.experiences)
    plugin = GEMPlugin(patterns_per_experience=each, memory_strength=0.5)
    strategy, pace = make_strategy(case.training, Naive, plugin)

    def kept() -> KeptMemory:
        tensors = [*plugin.memory_x.values(), *plugin.memory_y.values()]
        count = sum(len(x) for x in plugin.memory_x.values())
        return KeptMemory(sum(t.nbytes for t in tensors), count, count)

    def more_passes() -> float:
        return float(sum(steps * each * t for t, steps in enumerate(pace.steps)))

    about = f"gradient episodic memory, {each} examples of each experience"
    return Learner(strategy, pace, about, kept, more_passes)


@stream_method(
    "replay",
    "memory",
    "half of each batch is drawn from kept examples, as many of each experience",
    rows=lambda options: tuple(f"replay-{k}" for k in options.baselines.memory_examples),
)
def replay(case: StreamCase) -> Learner:
    """Return replay with the number of examples in the row's name."""
    from geomerge.strategies.avalanche import ExperienceBalancedBuffer, Naive

    examples = int(case.row.rpartition("-")[2])
    storage = ExperienceBalancedBuffer(max_size=examples)
    strategy, pace = make_strategy(case.training, Naive, storage=storage)

    def kept() -> KeptMemory:
        count = len(storage.buffer)
        if not count:
            return KeptMemory()
        inputs = storage.buffer.take(torch.arange(1))[0].numel()
        return KeptMemory(count * (_FLOAT * inputs + _LABEL), count, count)

    about = f"half of each batch is drawn from {examples} kept examples"
    return Learner(strategy, pace, about, kept)
