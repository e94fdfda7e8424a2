"""Bytes of experts' data, sketches and passes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from geomerge.expert import Expert
from geomerge.merging.measuring import inputs_of
from geomerge.metrics.registry import NetworkSize
from geomerge.networks.batches import leaves
from geomerge.weight_space import WeightSpace

__all__ = [
    "bytes_of_pass",
    "data_bytes",
    "forward_bytes",
    "input_bytes",
    "network_size",
    "pass_bytes",
    "sketch_bytes",
]

_ALIVE = 6  # activations as large as the largest, with what a convolution needs for a moment


def pass_bytes(experts: Iterable[Expert]) -> int:
    """Return the bytes of each further input in a pass, of the network with the most.

    Args:
        experts: Experts with inputs; those with inputs of one shape are alike.
    """
    shapes = {str(inputs_of(expert).shape): expert for expert in experts}
    return max((bytes_of_pass(expert) for expert in shapes.values()), default=0)


def network_size(expert: Expert, pass_bytes: int = 0) -> NetworkSize:
    """Return the sizes on which the memory of an expert's metric depends.

    Args:
        expert: Expert with inputs.
        pass_bytes: Bytes that each further input adds to a pass forwards and backwards.
    """
    x = inputs_of(expert).batch(slice(0, 1))
    network = expert.network
    layerwise = network.max_moments is not None
    return NetworkSize(network, expert.weights, x, pass_bytes, layerwise, network.factor_form)


def data_bytes(space: WeightSpace) -> int:
    """Return the bytes of all tasks' examples."""
    tasks = {id(expert.task): expert.task for expert in space if expert.task}.values()
    splits = [split for task in tasks for split in (task.train, task.select, task.test)]
    return sum(split.inputs.nbytes + split.labels.nbytes for split in splits)


def sketch_bytes(experts: Iterable[Expert]) -> int:
    """Return the bytes of the experts' sketches as they are stored."""
    sketches = [expert.sketch.tensors() for expert in experts if expert.sketch is not None]
    return sum(tensor.nbytes for sketch in sketches for tensor in sketch.values())


# Bytes of a module's passes, by the precision and the shape of an input.
_KNOWN: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()


def bytes_of_pass(expert: Expert) -> int:
    """Return the bytes that each further input adds to a pass, which are measured once."""
    known = _KNOWN.setdefault(expert.network.module, {})
    key = f"{expert.network.precision} {inputs_of(expert).shape} {inputs_of(expert).dtype}"
    if key not in known:
        known[key] = _measured_bytes(expert)
    return known[key]


def _measured_bytes(expert: Expert) -> int:
    """Return the bytes that each further input adds to a pass forwards and backwards."""
    network = expert.network
    named = network.shared_module(expert.weights).named_parameters()
    parameters = {name: p.detach().requires_grad_(p.is_floating_point()) for name, p in named}

    def saved(count: int) -> int:
        total = 0

        def pack(tensor: Tensor) -> None:  # keeps nothing, since no backward pass follows
            nonlocal total
            total += tensor.nbytes

        x = inputs_of(expert).batch(slice(0, count))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            network.functional(parameters, x)
        return total

    # Activations and as much again: their gradients, and what layers need for a moment.
    return 2 * (saved(2) - saved(1)) + input_bytes(expert)


def forward_bytes(expert: Expert) -> int:
    """Return the bytes that each input adds to a pass without gradients, from its largest layer."""
    largest = 0

    def see(module: torch.nn.Module, given: Any, out: Any) -> None:
        nonlocal largest
        if isinstance(out, Tensor):
            largest = max(largest, out.nbytes)

    with ExitStack() as hooks:
        for module in expert.network.module.modules():
            hooks.enter_context(module.register_forward_hook(see))
        expert.network.logits(expert.weights, inputs_of(expert).batch(slice(0, 1)))
    return _ALIVE * largest


def input_bytes(expert: Expert) -> int:
    """Return the bytes of an expert's first input."""
    return sum(leaf.nbytes for leaf in leaves(inputs_of(expert).batch(slice(0, 1))))
