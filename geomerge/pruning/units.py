"""Units of a network: filters and neurons, with all that depends on them, in the weight vector.

A unit is an output channel of a convolution or an output of a linear layer. Units of layers whose
outputs are added are one. Where all weights that make a unit and all weights that read it are
zero, the network computes what a smaller one without that unit does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from geomerge.errors import OptionError, did_you_mean
from geomerge.networks.network import Network
from geomerge.pruning.parts import Part, Role
from geomerge.pruning.trace import Group, trace_groups

__all__ = ["FoundUnits", "Units", "find_units", "traced_units", "unit_named"]

_LEAK = 1e-6  # relative change of the outputs that counts as one; units that are cut leave none


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a layer, and of the layers tied to it.

    Attributes:
        layer: The layer they are known by: the first of those tied.
        layers: All layers whose outputs they are.
        count: How many they are.
        parts: Where they lie.
    """

    layer: str
    layers: tuple[str, ...]
    count: int
    parts: tuple[Part, ...] = field(repr=False)

    def places(self, indices: Sequence[int]) -> Tensor:  # (p,), sorted
        """Return the places in the weight vector of all that is zero without some units.

        Args:
            indices: The units, numbered from 0.

        Returns:
            Places of the weights that make the units or read them, int64, on the CPU.

        Raises:
            OptionError: If there is no such unit.
        """
        return self._places(indices, (Role.OWN, Role.READ))

    def consumers(self, indices: Sequence[int]) -> Tensor:  # (p,), sorted
        """Return the places of the weights that read units: columns of the next layers.

        Args:
            indices: The units, numbered from 0.

        Returns:
            Places in the weight vector, int64, on the CPU.

        Raises:
            OptionError: If there is no such unit.
        """
        return self._places(indices, (Role.READ,))

    def chosen(self, indices: Sequence[int]) -> Tensor:  # (c,), sorted
        """Return units as an index, each once.

        Args:
            indices: The units, numbered from 0.

        Returns:
            The same as int64.

        Raises:
            OptionError: If there is no such unit.
        """
        for index in indices:
            if not 0 <= index < self.count:
                raise OptionError(
                    f"expected units of {self.layer} from 0 to {self.count - 1}, got {index}; "
                    "choose among those"
                )
        return torch.tensor(sorted(set(indices)), dtype=torch.int64)

    def clear(
        self,
        w: Tensor,  # (n,)
        indices: Sequence[int],
        roles: Sequence[Role] = (Role.OWN, Role.READ),
    ) -> None:
        """Set some units to zero in a weight vector, which is changed.

        Args:
            w: The weights.
            indices: The units, numbered from 0.
            roles: What of them; all of :meth:`places` unless told.

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
    """Units by the name of each layer, and why other layers have none.

    Attributes:
        refused: By layer, why its units cannot be removed: the end of a sentence.
    """

    def __init__(self, found: Mapping[str, Units], refused: Mapping[str, str]) -> None:
        super().__init__(found)
        self.refused = dict(refused)


def find_units(
    network: Network,
    example: Tensor,  # (B, ...)
) -> FoundUnits:
    """Find the units that can be removed: masked, the network is exactly one without them.

    Left out are the network's outputs, units that pass through a LayerNorm or a GroupNorm, and
    whatever cannot be traced. What torch-pruning says is tried out: with the weights that read
    some units zero, the weights that make those must not matter.

    Args:
        network: The network; it stays as it is.
        example: Some of its inputs; two are enough.

    Returns:
        By name of every layer, the units; tied layers have the same.

    Raises:
        OptionError: If the network cannot be traced.
    """
    example = example[:2].to(network.device)
    traced, refused = traced_units(network, example)
    sound = traced
    if _leaks(network, traced, example):
        sound = [units for units in traced if not _leaks(network, [units], example)]
    why = "they act on each other or on the outputs in a way that cannot be traced"
    refused.update({k: why for units in traced if units not in sound for k in units.layers})
    return FoundUnits({name: units for units in sound for name in units.layers}, refused)


def traced_units(
    network: Network,
    example: Tensor,  # (B, ...)
    norms: bool = False,
) -> tuple[list[Units], dict[str, str]]:
    """Return the units that a trace finds: a proposal, to be tried out.

    Args:
        network: The network; it stays as it is.
        example: Some of its inputs.
        norms: Whether units may pass through a LayerNorm or a GroupNorm.

    Returns:
        The units, and for every layer without any the reason, the end of a sentence.

    Raises:
        OptionError: If the network cannot be traced.
    """
    groups, refused = trace_groups(network.module, example, norms)
    traced = []
    for group in groups:
        if (name := _without_weights(network, group)) is None:
            traced.append(_units(network, group))
        else:
            why = f"the weights of {name} are shared or made from others"
            refused.update(dict.fromkeys(group.layers, why))
    return traced, refused


def unit_named(units: Mapping[str, Units], layer: str) -> Units:
    """Return the units of a layer.

    Args:
        units: What :func:`find_units` found.
        layer: Dotted name of the layer.

    Returns:
        Its units.

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
        roles = {"weight": Role.OWN, "bias": Role.OWN} if touch.outputs else {"weight": Role.READ}
        if isinstance(layer, _BatchNorm):
            roles |= {"running_mean": Role.STATISTICS, "running_var": Role.STATISTICS}
        for kind, role in roles.items():
            name = f"{touch.layer}.{kind}"
            if name in network.slices:
                shape = tuple(network.shapes[name])
                start = network.slices[name].start
                parts.append(Part(name, role, start, shape, int(not touch.outputs), touch.indices))
    return Units(group.layers[0], group.layers, len(group.touches[0].indices), tuple(parts))


def _without_weights(network: Network, group: Group) -> str | None:
    """Return a layer of a group whose weights are not its own, if there is one."""
    everywhere = network.module.named_parameters(remove_duplicate=False)
    owners = Counter(id(parameter) for _, parameter in everywhere)
    for touch in group.touches:
        layer = network.module.get_submodule(touch.layer)
        own = [value for value in (layer.weight, layer.bias) if value is not None]
        if any(owners[id(value)] != 1 for value in own):
            return touch.layer
    return None


def _leaks(network: Network, sets: Sequence[Units], example: Tensor) -> bool:
    """Return whether units have an effect other than through the weights that read them."""
    generator = torch.Generator().manual_seed(0)
    everything = network.head_view(slice(None))
    w = network.initial.clone()
    x = example
    if x.is_floating_point():
        x = torch.randn(x.shape, generator=generator).to(x)
    for name, place in network.slices.items():
        if place.stop <= network.n_parameters:
            # Away from zeros, which would hide an effect: the last scale of a residual branch.
            scale = 0.1 * (float(w[place].square().mean().sqrt()) or 1.0)
            noise = torch.randn(network.shapes[name].numel(), generator=generator)
            w[place] += scale * noise.to(w)
    some = [torch.randperm(u.count, generator=generator)[: -(-u.count // 2)].tolist() for u in sets]
    for units, half in zip(sets, some, strict=True):
        units.clear(w, half, [Role.READ])
    with torch.no_grad():
        made = everything.outputs(w, x)
        for units, half in zip(sets, some, strict=True):
            units.clear(w, half, [Role.OWN])
        cut = everything.outputs(w, x)
    return not bool((made - cut).norm() <= _LEAK * made.norm())
