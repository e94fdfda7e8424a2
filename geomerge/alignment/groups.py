"""Permutation groups: tied units of a network, and the tensors that a permutation changes.

A permutation of a layer's outputs leaves the function unchanged if their consumers' inputs are
permuted as well. Layers whose outputs are added share one permutation and form one group.
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

_ROUNDING = 100  # multiples of eps, relative to the outputs; deep networks reach six


@dataclass(frozen=True, eq=False)
class PermutationGroup:
    """Tied units with the weights of their producers and consumers.

    Attributes:
        units: Units, with their places in the weight vector.
        blocks: Number of contiguous blocks of units that are kept together, such as the groups of a
            GroupNorm. Units are permuted within blocks, and blocks as a whole. One block allows any
            permutation.
    """

    units: Units
    blocks: int

    @property
    def count(self) -> int:
        """Number of units."""
        return self.units.count

    def random(self, generator: torch.Generator) -> Tensor:  # (units,)
        """Draw a random permutation."""
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
    """Find the groups of units that can be permuted without changing the function.

    Excluded are the network's outputs, units of layers with shared weights, of grouped convolutions
    and of attention, and units that cannot be traced. Groups proposed by torch-pruning are
    verified: random permutations at weights without zeros must not change the outputs.

    Args:
        network: Network.
        w: Weights of the network; their dtype is used for the verification.
        example: Inputs of the network; two are enough.

    Returns:
        The groups in the order of the network; and, for every layer without a group, the reason as
        the end of a sentence.

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
    """Permute the units of a group in a vector, in place.

    Args:
        group: Group of units.
        order: Index of the unit that each place receives.
        v: Weights, or one number per weight.
    """
    for part in group.units.parts:
        entries = torch.arange(part.shape[part.dim])
        entries[part.indices] = part.indices[order]
        tensor = v[part.span].view(part.shape)
        v[part.span] = tensor.index_select(part.dim, entries.to(v.device)).reshape(-1)


def _blocks(network: Network, units: Units) -> int:
    """Return the number of blocks that units must be permuted in, verified on the outputs."""
    layers = (network.module.get_submodule(p.tensor.rpartition(".")[0]) for p in units.parts)
    blocks = max((x.num_groups for x in layers if isinstance(x, nn.GroupNorm)), default=1)
    return blocks if units.count % blocks == 0 else 1


def _stays(network: Network, w: Tensor, groups: Sequence[PermutationGroup], example: Batch) -> bool:
    """Return whether random permutations leave the outputs unchanged, at distinct weights."""
    generator = torch.Generator().manual_seed(0)
    everything = network.head_view(slice(None))
    w, x = w.clone(), drawn_like(example, generator)
    for name, place in network.slices.items():
        # Distinct and nonzero, since equal or zero weights would hide an effect; variances stay
        # positive.
        scale = 0.1 * (float(w[place].square().mean().sqrt()) or 1.0)
        noise = scale * torch.randn(network.shapes[name].numel(), generator=generator).to(w)
        w[place] += noise if place.stop <= network.n_parameters else noise.abs()
    before = everything.logits(w, x)
    for group in groups:
        permute(group, group.random(generator), w)
    after = everything.logits(w, x)
    rounding = _ROUNDING * torch.finfo(w.dtype).eps
    return bool((after - before).norm() <= rounding * before.norm())
