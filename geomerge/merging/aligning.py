"""Alignment of experts in one weight space: units of each in the order of the first's."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from geomerge.alignment import Alignment, align_weights, permuted_metric
from geomerge.alignment.align import pooled_inputs
from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.merging.heads import Heads
from geomerge.merging.options import MergeOptions
from geomerge.metrics import Sketch
from geomerge.networks.network import Network
from geomerge.weight_space import WeightSpace

__all__ = ["align_experts"]

_NAMED = 3  # layers that a message names


def align_experts(
    space: WeightSpace, heads: Heads, options: MergeOptions
) -> tuple[WeightSpace, dict[str, Alignment]]:
    """Permute the units of every expert after the first, and its sketch with them.

    Args:
        space: Experts with the common head.
        heads: Places of their outputs. Rows of other tasks' classes are ignored when matching, and
            permuted with their own network.
        options: Method and seed of the alignment.

    Returns:
        The space with the permuted experts, and the alignments by name.

    Raises:
        OptionError: If there is nothing to trace the network with, it cannot be traced, or no unit
            of it can change places.
    """
    network, seed = space.network, options.machine.seed
    assert options.align is not None, "a method was chosen"
    inputs = pooled_inputs(space.experts, seed)
    first, *others = space.experts
    alignments = {}
    for expert in others:
        _, alignments[expert.name] = align_weights(
            network,
            _own(network, heads, first),
            _own(network, heads, expert),
            method=options.align,
            inputs=inputs,
            seed=seed,
        )
    for tried in alignments.values():
        if not tried.groups and tried.fixed:
            few = list(tried.fixed.items())[:_NAMED]
            why = "; ".join(f"{layer}: {reason}" for layer, reason in few)
            raise OptionError(f"no units can be matched ({why}); set `align` to none")
    weights = {
        e.name: alignments[e.name].permute(e.weights) if e.name in alignments else e.weights.clone()
        for e in space
    }
    if heads.layer is not None:
        _exchange_rows(network, heads, weights)
    aligned = []
    for expert in space:
        sketch, found = expert.sketch, alignments.get(expert.name)
        if sketch is not None and found is not None:
            sketch = Sketch(permuted_metric(sketch.metric, found), sketch.meta)
        aligned.append(replace(expert, weights=weights[expert.name], sketch=sketch))
    return replace(space, experts=tuple(aligned)), alignments


def _own(network: Network, heads: Heads, expert: Expert) -> Tensor:  # (n,)
    """Return an expert's weights with zeros for the classes of others.

    Those rows are equal in all experts before the merge, and would keep every unit in its place.
    """
    if heads.layer is None:
        return expert.weights
    w, rows = expert.weights.clone(), heads.rows[expert.name]
    for name, tensor in network.unravel(w).items():
        if name.rpartition(".")[0] == heads.layer:
            own = tensor[rows].clone()
            tensor.zero_()
            tensor[rows] = own
    return w


def _exchange_rows(network: Network, heads: Heads, weights: dict[str, Tensor]) -> None:
    """Write into all weights the others' rows of the head, in the new order of their units."""
    layer = f"{heads.layer}.weight"
    learned = {
        name: network.unravel(w)[layer][heads.rows[name]].clone() for name, w in weights.items()
    }
    for w in weights.values():
        matrix = network.unravel(w)[layer]
        for name, rows in learned.items():
            matrix[heads.rows[name]] = rows
