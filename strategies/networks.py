"""Multilayer perceptrons of streams, and their accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from geomerge.strategies.avalanche import MultiTaskModule, SimpleMLP, as_multitask
from geomerge.strategies.examples import Examples
from geomerge.strategies.streams import Stream

__all__ = ["accuracy", "make_network"]

_BATCH = 2000


def make_network(stream: Stream, hidden: int, seed: int) -> nn.Module:
    """Return a multi-layer perceptron with two hidden layers.

    Args:
        stream: Stream to learn; the network gets a head for each task where tasks are known.
        hidden: Number of units of each hidden layer.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = SimpleMLP(
            num_classes=stream.outputs,
            input_size=torch.Size(stream.shape).numel(),
            hidden_size=hidden,
            hidden_layers=2,
            drop_rate=0,
        )
        network: nn.Module = as_multitask(module, "classifier") if stream.heads else module
        return network


@torch.no_grad()
def accuracy(module: nn.Module, examples: Examples) -> float:
    """Return the share of examples that a network labels correctly.

    Args:
        module: Network; of one with heads, that of the examples' task answers.
        examples: Labelled examples.
    """
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    right = 0
    for start in range(0, len(examples.labels), _BATCH):
        part = slice(start, start + _BATCH)
        x: Tensor = examples.take(part).to(device)
        outputs = module(x, examples.task) if isinstance(module, MultiTaskModule) else module(x)
        right += int((outputs.argmax(dim=1).cpu() == examples.labels[part]).sum())
    module.train(training)
    return right / len(examples.labels)
