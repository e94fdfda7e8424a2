"""ZipIt (Stoica et al. 2024): merging of correlated units within and across networks.

At each layer the most correlated pairs among the units of both networks are merged until their
number is that of one network. A merged unit is the mean of its two units and replaces both as an
input of the next layer. All layers are merged (the paper's full zip). The implementation is limited
to sequential networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.layers import matrix_layers, visit_inputs
from geomerge.comparison.registry import MethodResult, method
from geomerge.data import Inputs
from geomerge.data.batchnorm import has_statistics, re_estimate
from geomerge.errors import OptionError
from geomerge.merging.prepare import PreparedMerge
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.pruning.trace import Touch, trace_groups

__all__ = ["match_pairs"]

INPUTS = 1000  # inputs per task
_POSITIONS = 5000  # evenly spaced positions per batch for correlations


@dataclass(frozen=True)
class _Chain:
    """Sequential network with the units between consecutive layers.

    Attributes:
        layers: Names of Linear and Conv2d layers from inputs to outputs.
        consumers: Indices of each layer's units in the inputs of the next, except for the last.
        norms: Names of BatchNorm layers after each layer, except for the last.
    """

    layers: list[str]
    consumers: list[Touch]
    norms: list[list[str]]


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
    chain = _chain(network, inputs[0].batch(slice(0, 2)))
    recorded = [_record_activations(network, expert.weights, inputs, chain) for expert in space]
    pairs = [
        match_pairs(_correlation(torch.cat(rows, dim=1))) for rows in zip(*recorded, strict=True)
    ]
    w = _zipped(context.prepared, chain, pairs)
    if has_statistics(network):
        w = re_estimate(network, w, inputs, context.seed)
    return MethodResult(w, inputs=("a", "b"), samples=len(recorded) * sum(map(len, inputs)))


def _chain(network: Network, example: Batch) -> _Chain:
    """Return a network as a sequence of layers.

    Raises:
        NotApplicableError: If the network is not sequential.
    """
    try:
        groups, _ = trace_groups(network.module, example)
    except OptionError as error:
        raise NotApplicableError(
            "needs a network that torch-pruning can trace, and it fails on this one"
        ) from error
    layers = matrix_layers(network)
    next_of: dict[str, tuple[Touch, list[str]]] = {}
    covered: list[str] = []
    for group in groups:
        consumers = [t for t in group.touches if not t.outputs]
        norms = [t.layer for t in group.touches if t.outputs and t.layer not in group.layers]
        if len(group.layers) == 1 and len(consumers) == 1:
            next_of[group.layers[0]] = (consumers[0], norms)
            covered += [group.layers[0], *norms]
    first = [k for k in layers if k not in {touch.layer for touch, _ in next_of.values()}]
    order, seen = first[:1], set(first[:1])
    while order and order[-1] in next_of and next_of[order[-1]][0].layer not in seen:
        order.append(next_of[order[-1]][0].layer)
        seen.add(order[-1])
    owners = {name.rpartition(".")[0] for name in network.shapes}
    if len(first) != 1 or seen != set(layers) or owners != {*covered, *order[-1:]}:
        raise NotApplicableError(
            "is made here for networks that are a row of Linear and Conv2d layers, with BatchNorm "
            "between them, and this network is not"
        )
    inner = [next_of[name] for name in order[:-1]]
    return _Chain(order, [touch for touch, _ in inner], [norms for _, norms in inner])


def _record_activations(
    network: Network, w: Tensor, inputs: Sequence[Inputs], chain: _Chain
) -> list[Tensor]:  # (rows, units) each
    """Return the activations of the units of all layers except the last, on all inputs."""
    rows: dict[str, list[Tensor]] = {touch.layer: [] for touch in chain.consumers}
    indices = {touch.layer: touch.indices for touch in chain.consumers}

    def keep(name: str, x: Tensor) -> None:
        if name in rows:
            units = _activations(x, indices[name])
            count = min(len(units), _POSITIONS)
            rows[name].append(units[torch.linspace(0, len(units) - 1, count).long()])

    for some in inputs:
        visit_inputs(network, w, some, keep)
    return [torch.cat(rows[touch.layer]) for touch in chain.consumers]


def _activations(x: Tensor, indices: Tensor) -> Tensor:  # (rows, units)
    """Return the units' activations in a layer's inputs, one row per input and position."""
    if x.dim() == 4:
        return x[:, indices[:, 0]].movedim(1, -1).flatten(0, -2)
    return x[..., indices.T].flatten(0, -2)


def _correlation(rows: Tensor) -> Tensor:  # (units, units)
    """Return the correlations of columns; those of constant columns are zero."""
    rows = rows - rows.mean(dim=0)
    length = rows.norm(dim=0)
    correlation: Tensor = (rows.T @ rows) / (length.outer(length) + 1e-12)
    return correlation


def _zipped(prepared: PreparedMerge, chain: _Chain, pairs: list[Tensor]) -> Tensor:  # (n,)
    """Return M [W_a 0; 0 W_b] U for every layer, with merge M and the previous unmerge U."""
    space, network = prepared.space, prepared.space.network
    parts = [network.unravel(expert.weights) for expert in space]
    w = space.middle()
    out = network.unravel(w)
    for k, name in enumerate(chain.layers):
        weights = [part[f"{name}.weight"] for part in parts]
        if k:  # the merged unit replaces two inputs
            weights = _merge_inputs(weights, chain.consumers[k - 1].indices, pairs[k - 1])
        tensors = {f"{name}.weight": weights}
        if f"{name}.bias" in out:
            tensors[f"{name}.bias"] = [part[f"{name}.bias"] for part in parts]
        if k + 1 < len(chain.layers):
            for norm in chain.norms[k]:
                for kind in network.module.get_submodule(norm).state_dict():
                    if (key := f"{norm}.{kind}") in out:
                        tensors[key] = [part[key] for part in parts]
            for key, both in tensors.items():
                out[key].copy_(torch.cat(both)[pairs[k]].mean(dim=1))
        else:
            for key, both in tensors.items():
                out[key].copy_(_head(prepared, both))
    return w


def _merge_inputs(weights: list[Tensor], indices: Tensor, pairs: Tensor) -> list[Tensor]:
    """Return weights, shape (d_out, d_in, ...) each, for merged units as inputs."""
    count = len(indices)
    merged_weights = []
    for owner, weight in enumerate(weights):
        merged = torch.zeros_like(weight)
        for members in pairs.T:  # first units of all pairs, then second ones
            own = members // count == owner
            source = indices[members[own] - owner * count]  # (u, positions of each unit)
            merged[:, indices[own]] += weight[:, source]
        merged_weights.append(merged)
    return merged_weights


def _head(prepared: PreparedMerge, both: list[Tensor]) -> Tensor:
    """Return the mean of the outputs' rows, or both networks' rows for separate heads."""
    merged = torch.stack(both).mean(dim=0)
    for expert, own in zip(prepared.space, both, strict=True):
        rows = prepared.heads.rows[expert.name]
        if rows.stop is not None:
            merged[rows] = own[rows]
    return merged
