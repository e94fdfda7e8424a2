"""Permutation groups: units of a network that are permuted together, and the tensors involved.

A layer's outputs may come in any order if everything that reads them follows. Layers whose outputs
are added must agree on one order, and so are one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geomerge.errors import OptionError, first_line
from geomerge.networks.batches import Batch, cast_floats, drawn_like, take
from geomerge.networks.network import Network
from geomerge.pruning.units import Units, traced_units

__all__ = ["PermutationGroup", "find_groups", "permute"]

_ROUNDING = 100  # units in the last place, relative to the outputs; deep networks show six


@dataclass(frozen=True, eq=False)
class PermutationGroup:
    """Units that change places together with all that makes and reads them.

    Attributes:
        units: Units, with their places in the weight vector.
        blocks: Number of blocks of neighbours that stay together, those of a GroupNorm: units
            change places within their block, and whole blocks do. One block allows any order.
    """

    units: Units
    blocks: int

    @property
    def count(self) -> int:
        """Number of units."""
        return self.units.count

    def random(self, generator: torch.Generator) -> Tensor:  # (units,)
        """Draw an order."""
        size = self.count // self.blocks
        orders = [
            int(block) * size + torch.randperm(size, generator=generator)
            for block in torch.randperm(self.blocks, generator=generator)
        ]
        return torch.cat(orders)


def find_groups(
    network: Network,
    w: Tensor,  # (n,)
    example: Batch,  # (B, ...)
) -> tuple[list[PermutationGroup], dict[str, str]]:
    """Find the groups of units that can change places without changing the function.

    Left out are the network's outputs, units of layers with shared weights, of convolutions in
    groups, of attention, and whatever cannot be traced. What torch-pruning says is tried out: in
    random orders, at weights where nothing is zero, the outputs must stay.

    Args:
        network: Network.
        w: Weights of it; their type is the one that it computes in.
        example: Inputs of it; two are enough.

    Returns:
        The groups in the order of the network, and for every layer in none the reason, the end of
        a sentence.

    Raises:
        OptionError: If the network cannot be traced.
    """
    example = cast_floats(take(example, slice(0, 2)), w)
    network.shared_module(w)
    try:
        traced, fixed = traced_units(network, example, norms=True)
    except OptionError as error:
        reason = first_line(error.__cause__ or error)
        raise OptionError(
            f"expected a network that torch-pruning can trace, so that its units can be aligned, "
            f"and it fails ({reason}); leave out `align`"
        ) from error
    groups = [PermutationGroup(units, _blocks(network, units)) for units in traced]
    sound = groups
    if not _stays(network, w, groups, example):
        sound = [group for group in groups if _stays(network, w, [group], example)]
        if not _stays(network, w, sound, example):
            sound = []
    why = "another order of them changes the outputs"
    fixed.update({k: why for group in groups if group not in sound for k in group.units.layers})
    return sound, fixed


def permute(
    group: PermutationGroup,
    order: Tensor,  # (units,)
    v: Tensor,  # (n,)
) -> None:
    """Put the units of a group in another order, in a vector that is changed.

    Args:
        group: Group of units.
        order: Number of the unit that comes to each place.
        v: Weights, or one number for each weight.
    """
    for part in group.units.parts:
        entries = torch.arange(part.shape[part.dim])
        entries[part.indices] = part.indices[order]
        tensor = v[part.span].view(part.shape)
        v[part.span] = tensor.index_select(part.dim, entries.to(v.device)).reshape(-1)


def _blocks(network: Network, units: Units) -> int:
    """Return the number of blocks that units must stay in, tried out on the outputs."""
    layers = (network.module.get_submodule(p.tensor.rpartition(".")[0]) for p in units.parts)
    blocks = max((x.num_groups for x in layers if isinstance(x, nn.GroupNorm)), default=1)
    return blocks if units.count % blocks == 0 else 1


def _stays(network: Network, w: Tensor, groups: Sequence[PermutationGroup], example: Batch) -> bool:
    """Return whether random orders leave the outputs, at weights that no two units share."""
    generator = torch.Generator().manual_seed(0)
    everything = network.head_view(slice(None))
    w, x = w.clone(), drawn_like(example, generator)
    for name, place in network.slices.items():
        # Apart from each other and from zero, which would hide an effect; a variance stays one.
        scale = 0.1 * (float(w[place].square().mean().sqrt()) or 1.0)
        noise = scale * torch.randn(network.shapes[name].numel(), generator=generator).to(w)
        w[place] += noise if place.stop <= network.n_parameters else noise.abs()
    before = everything.logits(w, x)
    for group in groups:
        permute(group, group.random(generator), w)
    after = everything.logits(w, x)
    rounding = _ROUNDING * torch.finfo(w.dtype).eps
    return bool((after - before).norm() <= rounding * before.norm())
