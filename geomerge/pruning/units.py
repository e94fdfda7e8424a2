"""Units of a network (filters and neurons) with their producers and consumers.

A unit is an output channel of a convolution or an output of a linear layer. Layers whose outputs
are added share their units. If all weights that produce or consume a unit are zero, the network
equals a smaller one without that unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from geomerge.errors import OptionError, did_you_mean
from geomerge.networks.batches import Batch, drawn_like, take, to_device
from geomerge.networks.network import Network
from geomerge.pruning.parts import Part, Role
from geomerge.pruning.trace import Group, trace_groups

__all__ = ["FoundUnits", "Units", "find_units", "traced_units", "unit_named"]

_LEAK = 1e-6  # relative change of the outputs above which units are not removable


@dataclass(frozen=True, eq=False)
class Units:
    """Units of a layer and of the layers tied to it.

    Attributes:
        layer: Name of the set: the first of the tied layers.
        layers: Names of all layers with these outputs.
        count: Number of units.
        parts: Entries of the units in each tensor.
    """

    layer: str
    layers: tuple[str, ...]
    count: int
    parts: tuple[Part, ...] = field(repr=False)

    def places(self, indices: Sequence[int]) -> Tensor:  # (p,), sorted
        """Return the indices in the weight vector of the weights that removal sets to zero.

        Args:
            indices: Units, numbered from 0.

        Returns:
            Indices of the weights that produce or consume the units, int64, on the CPU.

        Raises:
            OptionError: If there is no such unit.
        """
        return self._places(indices, (Role.PRODUCER, Role.CONSUMER))

    def consumer_places(self, indices: Sequence[int]) -> Tensor:  # (p,), sorted
        """Return the indices of the weights that consume units, columns of the next layers.

        Args:
            indices: Units, numbered from 0.

        Returns:
            Indices in the weight vector, int64, on the CPU.

        Raises:
            OptionError: If there is no such unit.
        """
        return self._places(indices, (Role.CONSUMER,))

    def chosen(self, indices: Sequence[int]) -> Tensor:  # (c,), sorted
        """Return units as a tensor of indices without duplicates.

        Args:
            indices: Units, numbered from 0.

        Returns:
            Indices, int64.

        Raises:
            OptionError: If there is no such unit.
        """
        for index in indices:
            if not 0 <= index < self.count:
                raise OptionError(
                    f"expected units of layer {self.layer} from 0 to {self.count - 1}, got "
                    f"{index}; "
                    "choose among those"
                )
        return torch.tensor(sorted(set(indices)), dtype=torch.int64)

    def clear(
        self,
        w: Tensor,  # (n,)
        indices: Sequence[int],
        roles: Sequence[Role] = (Role.PRODUCER, Role.CONSUMER),
    ) -> None:
        """Set units to zero in a weight vector, in place.

        Args:
            w: Weights.
            indices: Units, numbered from 0.
            roles: Roles of the parts to set to zero; by default those of :meth:`places`.

        Raises:
            OptionError: If there is no such unit.
        """
        chosen = self.chosen(indices)
        for part in self.parts:
            if part.role in roles:
                part.clear(w, chosen)

    def _places(self, indices: Sequence[int], roles: tuple[Role, ...]) -> Tensor:
        chosen = self.chosen(indices)
        parts = [part.places(chosen) for part in self.parts if part.role in roles]
        places: Tensor = torch.unique(torch.cat(parts))
        return places


class FoundUnits(dict[str, Units]):
    """Removable units by the name of each layer.

    Args:
        found: Units by name of each layer; tied layers have the same units.
        refused: Reason why the units of other layers cannot be removed, by layer.

    Attributes:
        refused: Reason why the units of other layers cannot be removed, by layer: the end of a
            sentence.
    """

    def __init__(self, found: Mapping[str, Units], refused: Mapping[str, str]) -> None:
        super().__init__(found)
        self.refused = dict(refused)


def find_units(
    network: Network,
    example: Batch,  # (B, ...)
) -> FoundUnits:
    """Find the removable units, for which setting to zero is equivalent to deletion.

    The network's outputs, units that pass through a LayerNorm or a GroupNorm, and untraceable
    layers are excluded. Groups proposed by torch-pruning are verified: if the weights that consume
    units are zero, the weights that produce them must have no effect.

    Args:
        network: Network; it is not changed.
        example: Batch of inputs; the first two are used.

    Returns:
        Units by name of each layer; tied layers have the same units.

    Raises:
        OptionError: If the network cannot be traced.
    """
    example = to_device(take(example, slice(0, 2)), network.device)
    traced, refused = traced_units(network, example)
    sound = traced
    if _leaks(network, traced, example):
        sound = [units for units in traced if not _leaks(network, [units], example)]
    why = "they act on each other or on the outputs in a way that cannot be traced"
    refused.update({k: why for units in traced if units not in sound for k in units.layers})
    return FoundUnits({name: units for units in sound for name in units.layers}, refused)


def traced_units(
    network: Network,
    example: Batch,  # (B, ...)
    norms: bool = False,
) -> tuple[list[Units], dict[str, str]]:
    """Return the units proposed by a trace, without verification.

    Args:
        network: Network; it is not changed.
        example: Batch of inputs.
        norms: Whether to allow units that pass through a LayerNorm or a GroupNorm.

    Returns:
        Units; and, for every layer without units, the reason as the end of a sentence.

    Raises:
        OptionError: If the network cannot be traced.
    """
    groups, refused = trace_groups(network.module, example, norms)
    traced = []
    for group in groups:
        if (name := _frozen_in(network, group)) is not None:
            refused.update(dict.fromkeys(group.layers, f"the weights of {name} are frozen"))
        elif (name := _without_weights(network, group)) is None:
            traced.append(_units(network, group))
        else:
            why = f"the weights of {name} are shared or made from others"
            refused.update(dict.fromkeys(group.layers, why))
    return traced, refused


def unit_named(units: Mapping[str, Units], layer: str) -> Units:
    """Return the units of a layer.

    Args:
        units: Result of :func:`find_units`.
        layer: Dotted name of the layer.

    Returns:
        Units of the layer.

    Raises:
        OptionError: If there is no such layer, or its units cannot be removed.
    """
    if layer in units:
        return units[layer]
    if isinstance(units, FoundUnits) and layer in units.refused:
        raise OptionError(
            f"the units of {layer!r} cannot be removed: {units.refused[layer]}; choose another "
            "layer, or remove single weights"
        )
    raise OptionError(f"no layer {layer!r} with units to remove{did_you_mean(layer, units)}")


def _units(network: Network, group: Group) -> Units:
    parts = []
    for touch in group.touches:
        layer = network.module.get_submodule(touch.layer)
        roles = (
            {"weight": Role.PRODUCER, "bias": Role.PRODUCER}
            if touch.outputs
            else {"weight": Role.CONSUMER}
        )
        if isinstance(layer, _BatchNorm):
            roles |= {"running_mean": Role.STATISTICS, "running_var": Role.STATISTICS}
        for kind, role in roles.items():
            name = f"{touch.layer}.{kind}"
            if name in network.slices:
                shape = tuple(network.shapes[name])
                start = network.slices[name].start
                parts.append(Part(name, role, start, shape, int(not touch.outputs), touch.indices))
    return Units(group.layers[0], group.layers, len(group.touches[0].indices), tuple(parts))


def _frozen_in(network: Network, group: Group) -> str | None:
    """Return a layer of a group with frozen weights; None without one."""
    names = {f"{touch.layer}.{kind}" for touch in group.touches for kind in ("weight", "bias")}
    frozen = sorted(names & network.frozen)
    return frozen[0].rpartition(".")[0] if frozen else None


def _without_weights(network: Network, group: Group) -> str | None:
    """Return a layer of a group with shared or derived weights; None without one."""
    everywhere = network.module.named_parameters(remove_duplicate=False)
    owners = Counter(id(parameter) for _, parameter in everywhere)
    for touch in group.touches:
        layer = network.module.get_submodule(touch.layer)
        own = [value for value in (layer.weight, layer.bias) if value is not None]
        if any(owners[id(value)] != 1 for value in own):
            return touch.layer
    return None


def _leaks(network: Network, sets: Sequence[Units], example: Batch) -> bool:
    """Return whether units affect the outputs other than through their consuming weights."""
    generator = torch.Generator().manual_seed(0)
    everything = network.head_view(slice(None))
    w = network.initial.clone()
    x = drawn_like(example, generator)
    for name, place in network.slices.items():
        if place.stop <= network.n_parameters:
            # Zero weights, such as the final scale of a residual branch, would hide an effect.
            scale = 0.1 * (float(w[place].square().mean().sqrt()) or 1.0)
            noise = torch.randn(network.shapes[name].numel(), generator=generator)
            w[place] += scale * noise.to(w)
    some = [torch.randperm(u.count, generator=generator)[: -(-u.count // 2)].tolist() for u in sets]
    for units, half in zip(sets, some, strict=True):
        units.clear(w, half, [Role.CONSUMER])
    with torch.no_grad():
        made = everything.outputs(w, x)
        for units, half in zip(sets, some, strict=True):
            units.clear(w, half, [Role.PRODUCER])
        cut = everything.outputs(w, x)
    return not bool((made - cut).norm() <= _LEAK * made.norm())
