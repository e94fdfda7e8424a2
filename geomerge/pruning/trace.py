"""Dependency groups of units, traced by torch-pruning.

torch-pruning's graph (Fang et al., DepGraph, CVPR 2023) follows the channels of a layer through a
network. Operations unknown to it are treated as elementwise ones, so its groups are only proposals,
which :mod:`geomerge.pruning.units` tests.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from geomerge.errors import OptionError, first_line
from geomerge.networks.batches import Batch

__all__ = ["Group", "Touch", "trace_groups"]


@dataclass(frozen=True, eq=False)
class Touch:
    """Outputs or inputs of one layer that belong to the units of a group.

    Attributes:
        layer: Dotted name of a Linear, convolution or BatchNorm layer.
        outputs: Whether the units are outputs of the layer, else they are inputs.
        indices: Outputs or inputs that belong to each unit, shape (units, k).
    """

    layer: str
    outputs: bool
    indices: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Units of tied layers with all their producers and consumers.

    Attributes:
        layers: Names of the layers that have these outputs, in the network's order.
        touches: Outputs and inputs of layers that are removed together with the units.
    """

    layers: tuple[str, ...]
    touches: tuple[Touch, ...]


def trace_groups(
    module: nn.Module,
    example: Batch,  # (B, ...)
    norms: bool = False,
) -> tuple[list[Group], dict[str, str]]:
    """Group the outputs of all Linear and convolution layers.

    Args:
        module: Network; only a copy of it is run.
        example: Batch of its inputs.
        norms: Whether units may pass through a LayerNorm or a GroupNorm, which permutations of
            units allow and removal does not.

    Returns:
        Groups, and the reason for every layer without a group, the end of a sentence.

    Raises:
        OptionError: If the network cannot be traced.
    """
    import torch_pruning  # slow to import, and used here alone

    try:
        # A copy, because tracing enables gradients and leaves hooks behind if it fails.
        copied = copy.deepcopy(module).eval()
        for parameter in copied.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad():
            # A list, because a bare tensor would be unpacked along its batch.
            given = [example] if isinstance(example, Tensor) else example
            graph = torch_pruning.DependencyGraph().build_dependency(copied, given, verbose=False)
    except Exception as error:  # torch-pruning and the network's own code raise any type
        raise OptionError(
            f"torch-pruning cannot trace this network ({first_line(error)}); its units cannot be "
            "removed, remove single weights instead"
        ) from error
    names = {layer: name for name, layer in copied.named_modules()}
    groups: list[Group] = []
    refused: dict[str, str] = {}
    grouped: set[str] = set()
    for layer, name in names.items():
        if not isinstance(layer, (nn.Linear, _ConvNd)) or name in grouped:
            continue
        found: Group | str
        if layer not in graph.module2node:
            found = "no forward pass calls it as a layer of its own"
        else:
            try:
                found = _group(graph, layer, names, norms)
            except Exception as error:  # torch-pruning raises any type at unsupported operations
                found = f"torch-pruning cannot follow its outputs ({first_line(error)})"
        if isinstance(found, Group):
            groups.append(found)
            grouped.update(found.layers)
        else:
            refused[name] = found
    return groups, {name: why for name, why in refused.items() if name not in grouped}


def _group(graph: Any, root: nn.Module, names: dict[nn.Module, str], norms: bool) -> Group | str:
    """Return the group of a layer's outputs, or the reason why it has none."""
    from torch_pruning.ops import OPTYPE

    pruner = graph.get_pruner_of_module(root)
    count = pruner.get_out_channels(root)
    items = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(count)))
    layers, touches = [], []
    read = False
    for item in items:
        layer, outputs = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if item.dep.target.type == OPTYPE.OUTPUT:
            return "they are the network's outputs"
        if isinstance(layer, nn.Parameter):
            return "they meet a parameter that is of no Linear, convolution or BatchNorm layer"
        if layer not in names or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
            continue  # an operation without weights of its own for each unit
        normed = norms and isinstance(layer, (nn.GroupNorm, nn.LayerNorm))
        if not normed and (why := _untouchable(layer, names[layer])) is not None:
            return why
        indices = _by_unit(item.idxs, item.root_idxs, count)
        if indices is None:
            return "they are joined or split on the way, so that they cannot be removed one by one"
        touches.append(Touch(names[layer], outputs, indices))
        if outputs and isinstance(layer, (nn.Linear, _ConvNd)):
            if not torch.equal(indices, torch.arange(graph.get_out_channels(layer))[:, None]):
                return f"they are only some of the outputs of {names[layer]}, or in another order"
            layers.append(names[layer])
        read = read or not outputs
    if not read:
        return "they are the network's outputs"
    order = list(names.values())
    return Group(tuple(sorted(layers, key=order.index)), tuple(touches))


def _untouchable(layer: nn.Module, name: str) -> str | None:
    """Return the reason why units cannot be removed from a layer exactly, None if they can."""
    if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
        return (
            f"they pass through {name}, a {type(layer).__name__} that scales units by each other, "
            "so that a network without some is not one where those are zero"
        )
    if isinstance(layer, _ConvTransposeNd):
        return f"they pass through {name}, a {type(layer).__name__}"
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return None if depthwise else f"they pass through {name}, a convolution in groups"
    if not isinstance(layer, (nn.Linear, _ConvNd, _BatchNorm)):
        return f"they pass through {name}, a {type(layer).__name__}"
    return None


def _by_unit(indices: list[int], roots: list[int], count: int) -> Tensor | None:
    """Return the indices of each unit, shape (count, k), None if their numbers differ."""
    where, unit = torch.tensor(indices), torch.tensor(roots)
    if not torch.equal(torch.bincount(unit), torch.full((count,), len(where) // count)):
        return None
    order = torch.argsort(unit * (int(where.max()) + 1) + where)
    return where[order].view(count, -1)
