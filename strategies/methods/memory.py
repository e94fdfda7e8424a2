"""Memories of labelled examples: replay, dark replay, and gradient episodic memory."""

from __future__ import annotations

import torch

from geomerge.strategies.learner import KeptMemory, Learner, make_strategy
from geomerge.strategies.registry import StreamCase, stream_method

__all__ = ["dark_replay", "gem", "replay"]

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
    rows=lambda options: (
        *(f"replay-{k}" for k in options.baselines.memory_examples),
        "replay-bytes",
    ),
)
def replay(case: StreamCase) -> Learner:
    """Return replay with as many examples in all as the row's name says.

    The row ``replay-bytes`` has as many as fit into the bytes that geomerge may store, where each
    takes the bytes that it has in the data set.
    """
    from geomerge.strategies.avalanche import ExperienceBalancedBuffer, Naive
    from geomerge.strategies.methods.statistics import stored_bytes

    by_bytes = case.row == "replay-bytes"
    each = case.input_bytes + 1  # and a label
    number = case.row.rpartition("-")[2]
    examples = stored_bytes(case) // each if by_bytes else int(number)
    storage = ExperienceBalancedBuffer(max_size=examples)
    strategy, pace = make_strategy(case.training, Naive, storage=storage)

    def kept() -> KeptMemory:
        count = len(storage.buffer)
        if not count:
            return KeptMemory()
        inputs = storage.buffer.take(torch.arange(1))[0].numel()
        size = each if by_bytes else _FLOAT * inputs + _LABEL
        return KeptMemory(count * size, count, count)

    about = f"half of each batch is drawn from {examples} kept examples"
    return Learner(strategy, pace, about, kept)


@stream_method(
    "der++",
    "memory",
    "dark experience replay with labels (Buzzega et al., NeurIPS 2020)",
    rows=lambda options: () if options.protocol == "task" else ("der++",),
)
def dark_replay(case: StreamCase) -> Learner:
    """Return DER++, which keeps as many examples in all as the first replay row, and logits."""
    from geomerge.strategies.avalanche import DER

    examples = case.options.baselines.memory_examples[0]
    strategy, pace = make_strategy(case.training, DER, mem_size=examples, alpha=0.1, beta=0.5)

    def kept() -> KeptMemory:
        buffer = strategy.storage_policy.buffer
        if not len(buffer):
            return KeptMemory()
        x, _, _, logits = buffer[0]
        size = _FLOAT * (x.numel() + logits.numel()) + _LABEL
        return KeptMemory(len(buffer) * size, len(buffer), len(buffer))

    about = f"dark experience replay of {examples} kept examples, alpha 0.1, beta 0.5"
    return Learner(strategy, pace, about, kept)
