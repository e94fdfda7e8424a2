"""Differing buffers of experts: statistics, which can be averaged, and constants, which cannot.

A path moves weights. A permutation, a mask or an anchor is part of the function and no point of a
path: one network can have only one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.data import Inputs
from geomerge.errors import CheckpointError, GeomergeError
from geomerge.expert import Expert
from geomerge.io.containers import is_mask
from geomerge.networks.batches import Batch, pass_to
from geomerge.networks.network import Network

__all__ = ["constants_to_json", "different_constants"]

MOST_NUMBERS = 100_000  # numbers in all constants of a task, in the metadata of a file
_INPUTS = 64
_SHOWN = 3
# Of layers that are no BatchNorm of torch, by their usual names: statistics, counters, and the
# vectors of a spectral norm's power iteration.
_STATISTICS = ("running_", "moving_", "ema_", "num_batches_tracked", "n_averaged")
_VECTORS = ("_u", "_v", "weight_u", "weight_v")


def different_constants(
    experts: Sequence[Expert], separate: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Return the buffers of each expert that differ, and that training does not change.

    A buffer that makes no difference to the outputs on a few inputs, such as a counter, may differ.

    Args:
        experts: Experts; the first is the one whose buffers a merged network would have.
        separate: Whether the task of each input is known, so that each task may keep its own.

    Returns:
        Buffers by the name of the expert and their own; all have those that differ anywhere. None
        where none differ.

    Raises:
        CheckpointError: If such buffers differ and not every task can keep its own.
    """
    first = experts[0]
    own = _buffers(first)
    found: set[str] = set()
    for other in experts[1:]:
        theirs = _buffers(other)
        odd = first.network.shapes.keys() ^ other.network.shapes.keys()
        if odd:  # of one architecture, their names and shapes are the same
            raise CheckpointError(
                f"{min(odd)!r} is a mask with infinity in one of {first.name} and {other.name} and "
                "holds finite numbers in the other, expected one mask in both; save one of them "
                "again"
            )
        apart = [name for name in own if name in theirs and _differ(own[name], theirs[name])]
        apart = [name for name in apart if not _is_statistic(first.network.module, name)]
        if apart:
            apart = _constants(other, {name: own[name] for name in apart})
        found |= {*apart}
        masks = [name for name in apart if is_mask(own[name]) or is_mask(_buffers(other)[name])]
        known = not masks and all(expert.task is not None for expert in experts)
        size = sum(own[name].numel() for name in found)
        if apart and not (separate and known and size <= MOST_NUMBERS):
            listed = ", ".join(repr(name) for name in apart[:_SHOWN])
            more = f" and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
            raise CheckpointError(
                f"{first.name} and {other.name} differ in {listed}{more}, buffers that training "
                "does not change, such as permutations, masks or anchors, and a merged network has "
                "only one of each; merge networks that were trained with the same ones, or give "
                f"each its task and use `head` separate, which keeps up to {MOST_NUMBERS} numbers"
            )
    return {e.name: {k: b for k, b in _buffers(e).items() if k in found} for e in experts if found}


def constants_to_json(constants: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return buffers as metadata of a merged network for a task."""
    return {
        name: {"dtype": str(b.dtype), "shape": list(b.shape), "values": b.flatten().tolist()}
        for name, b in constants.items()
    }


def _buffers(expert: Expert) -> dict[str, Tensor]:
    """Return all buffers of an expert, those that are not in its state dict too."""
    views = expert.network.unravel(expert.weights)
    return {name: views.get(name, b) for name, b in expert.network.module.named_buffers()}


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other.to(one.device))


def _is_statistic(module: nn.Module, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    if isinstance(module.get_submodule(owner), nn.modules.batchnorm._NormBase):
        return True
    return last.startswith(_STATISTICS) or last in _VECTORS


def _constants(expert: Expert, others: dict[str, Tensor]) -> list[str]:
    """Return the buffers that matter to an expert's outputs and that training does not change.

    Args:
        expert: Expert.
        others: Values of the same buffers in other networks.
    """
    inputs = _inputs(expert)
    if inputs is None:  # a single number without further evidence is taken for a counter
        return [name for name, b in others.items() if b.dim() or b.is_floating_point()]
    x = inputs.batch(slice(0, _INPUTS))
    network = expert.network
    module = copy.deepcopy(network.shared_module(expert.weights))
    outputs = network.logits(expert.weights, x)
    trained = _trained(module, x)
    return [
        name
        for name, value in others.items()
        if name not in trained and _matters(network, module, x, outputs, name, value)
    ]


def _inputs(expert: Expert) -> Inputs | None:
    return expert.task.select.inputs if expert.task is not None else expert.inputs


def _trained(module: nn.Module, x: Batch) -> set[str]:
    """Return the buffers that a pass in training mode changes, such as running statistics."""
    trained = copy.deepcopy(module).train()
    before = {name: b.clone() for name, b in trained.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            pass_to(trained, x)
    except Exception:  # whatever a network's own code raises in training mode
        return set()
    return {name for name, b in trained.named_buffers() if _differ(before[name], b)}


def _matters(
    network: Network, module: nn.Module, x: Batch, outputs: Tensor, name: str, value: Tensor
) -> bool:
    """Return whether outputs, shape (B, m), change where a buffer has another value."""
    owner, _, last = name.rpartition(".")
    layer = module.get_submodule(owner)
    own = layer._buffers[last]
    layer._buffers[last] = value
    try:
        with torch.no_grad():
            return not torch.equal(network.call(module, x), outputs)
    except (GeomergeError, RuntimeError, ValueError, IndexError, TypeError):
        return True
    finally:
        layer._buffers[last] = own
