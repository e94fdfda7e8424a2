"""ZipIt (Stoica et al. 2024): merging of correlated units within and across networks.

In each group of units that share a permutation, such as a layer's or a residual stream's, the most
correlated pairs among the units of both networks are merged until their number is that of one
network. A merged unit is the mean of its two units and replaces both as an input of all layers that
read the group. All groups are merged (the paper's full zip), and the last layers are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from geomerge.alignment.groups import PermutationGroup, find_groups
from geomerge.alignment.weights import assignment
from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.layers import visit_inputs
from geomerge.comparison.registry import MethodResult, method
from geomerge.data import Inputs
from geomerge.data.batchnorm import has_statistics, re_estimate
from geomerge.errors import OptionError
from geomerge.merging.prepare import PreparedMerge
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.pruning.parts import Part, Role

__all__ = ["match_pairs"]

INPUTS = 1000  # inputs per task
_POSITIONS = 5000  # evenly spaced positions per batch for correlations


def match_pairs(
    correlation: Tensor,  # (k, k), k even
) -> Tensor:  # (k / 2, 2)
    """Pair units greedily in descending order of correlation.

    Args:
        correlation: Correlations between all units.

    Returns:
        Pairs, in which each unit occurs once; pairs and the units of a pair are in ascending order.
    """
    left = correlation.clone()
    left.fill_diagonal_(-torch.inf)
    pairs = []
    for _ in range(len(left) // 2):
        best = int(left.argmax())
        pair = sorted((best // len(left), best % len(left)))
        pairs.append(pair)
        left[pair] = -torch.inf
        left[:, pair] = -torch.inf
    return torch.tensor(sorted(pairs))


@method(
    "zipit", "matching", "correlated units merged within and across networks (ZipIt, all layers)"
)
def zipit(context: Context) -> MethodResult:
    """Merge the units of both networks by the correlations of their activations."""
    space, network = context.space, context.network
    inputs = [x.sample(INPUTS, context.seed) for x in context.inputs(*space.experts)]
    if len({x.shape for x in inputs}) > 1:
        raise NotApplicableError("needs inputs of one shape from both tasks, and theirs differ")
    groups = _groups(context.prepared, inputs[0].batch(slice(0, 2)))
    recorded = [_record_activations(network, expert.weights, inputs, groups) for expert in space]
    both = (torch.cat(rows, dim=1) for rows in zip(*recorded, strict=True))
    pairs = [_pairs(*given) for given in zip(groups, both, strict=True)]
    w = _zipped(context.prepared, groups, pairs)
    if has_statistics(network):
        w = re_estimate(network, w, inputs, context.seed)
    return MethodResult(w, inputs=("a", "b"), samples=len(recorded) * sum(map(len, inputs)))


def _groups(prepared: PreparedMerge, example: Batch) -> list[PermutationGroup]:
    """Return the groups of units to merge, which are those of all layers except the last.

    Raises:
        NotApplicableError: If units of other layers belong to no group.
    """
    network, heads = prepared.space.network, prepared.heads
    try:
        found, fixed = find_groups(network, prepared.space.experts[0].weights, example)
    except OptionError as error:
        raise NotApplicableError(
            "needs a network that torch-pruning can trace, and it fails on this one"
        ) from error
    groups = [group for group in found if not set(group.units.layers) & set(heads.layers)]
    merged = {
        _layer(part)
        for group in groups
        for part in group.units.parts
        if part.role is not Role.CONSUMER
    }
    owners = {name.rpartition(".")[0] for name in network.shapes}
    left = [k for k, _ in network.module.named_modules() if k in owners and k not in merged]
    last = [layer for layer in left if "outputs" in fixed.get(layer, "")]
    ends = heads.layers or last or left[-1:]
    if others := [layer for layer in left if layer not in ends]:
        layer = others[0] or "the network itself"
        reason = fixed.get(others[0], "they are of no layer that can be traced")
        raise NotApplicableError(
            f"merges the units of all layers but the last, and those of {layer} cannot be merged: "
            f"{reason}"
        )
    return groups


def _layer(part: Part) -> str:
    return part.tensor.rpartition(".")[0]


def _readers(group: PermutationGroup) -> list[Part]:
    return [part for part in group.units.parts if part.role is Role.CONSUMER]


def _record_activations(
    network: Network, w: Tensor, inputs: Sequence[Inputs], groups: Sequence[PermutationGroup]
) -> list[Tensor]:  # (rows, units) each
    """Return the activations of each group's units wherever a layer reads them, on all inputs."""
    rows: list[list[Tensor]] = [[] for _ in groups]
    readers: dict[str, list[tuple[Tensor, list[Tensor]]]] = defaultdict(list)
    for group, own in zip(groups, rows, strict=True):
        for part in _readers(group):
            readers[_layer(part)].append((part.indices, own))

    def keep(name: str, x: Tensor) -> None:
        convolution = isinstance(network.module.get_submodule(name), _ConvNd)
        channels = x.movedim(1 if convolution else -1, -1)
        for indices, own in readers[name]:
            units = channels[..., indices.T].flatten(0, -2)
            count = min(len(units), _POSITIONS)
            own.append(units[torch.linspace(0, len(units) - 1, count).long()])

    for some in inputs:
        visit_inputs(network, w, some, keep, readers)
    return [torch.cat(own) for own in rows]


def _pairs(
    group: PermutationGroup,
    activations: Tensor,  # (rows, 2 * units)
) -> Tensor:  # (units, 2)
    """Return the pairs of both networks' units; those of b are numbered after those of a.

    Units that are normalised in blocks are merged within one block of a and one of b.
    """
    correlation = _correlation(activations)
    if group.blocks == 1:
        return match_pairs(correlation)
    count = group.count
    own = torch.arange(count).view(group.blocks, -1)
    matched = assignment(correlation[:count, count:], group.blocks).view(group.blocks, -1)
    blocks = torch.cat([own, count + matched.sort(dim=1).values], dim=1)
    return torch.cat([block[match_pairs(correlation[block][:, block])] for block in blocks])


def _correlation(rows: Tensor) -> Tensor:  # (units, units)
    """Return the correlations of columns; those of constant columns are zero."""
    rows = rows - rows.mean(dim=0)
    length = rows.norm(dim=0)
    correlation: Tensor = (rows.T @ rows) / (length.outer(length) + 1e-12)
    return correlation


def _zipped(
    prepared: PreparedMerge, groups: Sequence[PermutationGroup], pairs: Sequence[Tensor]
) -> Tensor:  # (n,)
    """Return M [W_a 0; 0 W_b] U of every layer, with its own merge M and its inputs' unmerge U.

    The outputs of a shared head are the mean of both networks', and other heads have their own.
    """
    space, heads = prepared.space, prepared.heads
    both = [expert.weights.clone() for expert in space]
    for group, found in zip(groups, pairs, strict=True):
        for part in _readers(group):
            _merge_inputs(both, part, found)
    w = torch.stack(both).mean(dim=0)
    for group, found in zip(groups, pairs, strict=True):
        for part in group.units.parts:
            if part.role is not Role.CONSUMER:
                units = torch.cat([v[part.span].view(part.shape)[part.indices] for v in both])
                w[part.span].view(part.shape)[part.indices] = units[found].mean(dim=1)
    merged = space.network.unravel(w)
    for expert, v in zip(space, both, strict=True):
        for name, tensor in space.network.unravel(v).items():
            if (layer := name.rpartition(".")[0]) in heads.layers:
                rows, _ = heads.place(layer, expert.name)
                merged[name][rows] = tensor[rows]
    return w


def _merge_inputs(both: Sequence[Tensor], part: Part, pairs: Tensor) -> None:
    """Replace the weights of a layer's inputs by those of the merged units, in place."""
    count = len(part.indices)
    for owner, w in enumerate(both):
        weight = w[part.span].view(part.shape)
        merged = torch.zeros_like(weight[:, part.indices])  # (d_out, units, inputs of each, ...)
        for members in pairs.T:  # first units of all pairs, then second ones
            own = members // count == owner
            merged[:, own] += weight[:, part.indices[members[own] - owner * count]]
        weight[:, part.indices] = merged
