"""Dependency groups of units, traced by torch-pruning.

torch-pruning's graph (Fang et al., DepGraph, CVPR 2023) follows the channels of a layer through a
network. It treats unknown operations as elementwise, so that its groups are only proposals, which
:mod:`geomerge.pruning.units` verifies.
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
    """Outputs or inputs of one layer for the units of a group.

    Attributes:
        layer: Dotted name of a Linear, convolution or BatchNorm layer.
        outputs: Whether the units are outputs of the layer rather than inputs.
        indices: Indices of the outputs or inputs of each unit, shape (units, k).
    """

    layer: str
    outputs: bool
    indices: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Units of tied layers with their producers and consumers.

    Attributes:
        layers: Names of the layers with these outputs, in the network's order.
        touches: Outputs and inputs of layers that belong to the units.
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
        module: Network, of which a copy is run.
        example: Batch of inputs.
        norms: Whether to allow units that pass through a LayerNorm or a GroupNorm, for permutations
            but not for removal.

    Returns:
        Groups; and, for every layer without a group, the reason as the end of a sentence.

    Raises:
        OptionError: If the network cannot be traced.
    """
    import torch_pruning  # slow to import, and used only here

    try:
        # A copy, since tracing enables gradients and does not remove its hooks if it fails.
        copied = copy.deepcopy(module).eval()
        for parameter in copied.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad():
            # A list, since a bare tensor would be unpacked along its batch axis.
            given = [example] if isinstance(example, Tensor) else example
            graph = torch_pruning.DependencyGraph().build_dependency(copied, given, verbose=False)
    except Exception as error:  # torch-pruning and the network raise errors of any type
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
            except Exception as error:  # unsupported operations raise errors of any type
                found = f"torch-pruning cannot follow its outputs ({first_line(error)})"
        if isinstance(found, Group):
            groups.append(found)
            grouped.update(found.layers)
        else:
            refused[name] = found
    return groups, {name: why for name, why in refused.items() if name not in grouped}


def _group(graph: Any, root: nn.Module, names: dict[nn.Module, str], norms: bool) -> Group | str:
    """Return the group of a layer's outputs, or the reason for having none."""
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
            continue  # an operation without weights per unit
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
    """Return the reason why units cannot be removed exactly from a layer; None if they can."""
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
    """Return the indices of each unit, shape (count, k); None if their numbers differ."""
    where, unit = torch.tensor(indices), torch.tensor(roots)
    if not torch.equal(torch.bincount(unit), torch.full((count,), len(where) // count)):
        return None
    order = torch.argsort(unit * (int(where.max()) + 1) + where)
    return where[order].view(count, -1)
