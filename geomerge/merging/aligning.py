"""Alignment of experts in one weight space: units, and streams, of each as the first's are."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from geomerge.alignment import (
    ROTATIONS,
    Alignment,
    align_weights,
    find_stream,
    permuted_metric,
    rotate_weights,
)
from geomerge.alignment.align import pooled_inputs
from geomerge.data import Inputs
from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.merging.heads import Heads
from geomerge.merging.options import MergeOptions
from geomerge.metrics import Sketch
from geomerge.networks.network import Network
from geomerge.weight_space import WeightSpace

__all__ = ["align_experts", "rotation_problem"]

_NAMED = 3  # layers that a message names


def align_experts(
    space: WeightSpace, heads: Heads, options: MergeOptions
) -> tuple[WeightSpace, dict[str, Alignment]]:
    """Permute the units of every expert after the first, and its sketch with them.

    With ``rotations`` the residual streams and the heads of attention are rotated before, and units
    permuted by their activations.

    Args:
        space: Experts with the common head.
        heads: Places of their outputs. Rows of other tasks' classes are ignored when matching, and
            permuted with their own network.
        options: Method and seed of the alignment.

    Returns:
        The space with the permuted experts, and the alignments by name.

    Raises:
        OptionError: If there is nothing to trace the network with, it cannot be traced, no unit of
            it can change places, or it cannot be rotated.
    """
    network, seed, chosen = space.network, options.machine.seed, options.align
    assert chosen is not None, "a method was chosen"
    inputs, method = pooled_inputs(space.experts, seed), chosen
    if chosen == ROTATIONS:
        space, method = _rotated(space, heads, options, inputs), "activations"
    first, *others = space.experts
    alignments = {}
    for expert in others:
        _, alignment = align_weights(
            network,
            _own(network, heads, first),
            _own(network, heads, expert),
            method=method,
            inputs=inputs,
            seed=seed,
        )
        alignments[expert.name] = replace(alignment, method=chosen)
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


def rotation_problem(space: WeightSpace, options: MergeOptions) -> str | None:
    """Return the problem of rotations of experts; None where they can be rotated.

    Args:
        space: Experts.
        options: Options of the merge.
    """
    if find_stream(space.network.module) is None:
        return "only networks of the make vit-cifar can be rotated"
    blind = [e.name for e in space if e.inputs is None]
    if blind:
        names = " and ".join(blind)
        return f"rotations need inputs of every network, and there are none for {names}"
    if space.network.held is not None:
        return "frozen weights cannot be rotated"
    if options.walk.keep_zeros:
        return "`keep_zeros` cannot be kept in rotated networks"
    return None


def _rotated(
    space: WeightSpace, heads: Heads, options: MergeOptions, inputs: Inputs
) -> WeightSpace:
    """Return the space with rotated experts, whose functions are the same.

    The others' rows of the head follow the rotation of their own network.
    """
    network, stream = space.network, find_stream(space.network.module)
    problem = rotation_problem(space, options)
    if problem is not None or stream is None:
        raise OptionError(f"{problem}; set `align` to none, weights or activations")
    given = [expert.weights for expert in space]
    rotated = rotate_weights(network, stream, given, inputs, options.machine.seed)
    if heads.layer is not None:
        # Changes, since each network has biases of its own for the others' classes.
        bias = f"{heads.layer}.bias"
        own = [network.unravel(w)[bias] for w in rotated]
        news = {
            expert.name: (new - network.unravel(old)[bias])[heads.rows[expert.name]]
            for expert, new, old in zip(space, own, given, strict=True)
        }
        for old, new in zip(given, own, strict=True):
            new.copy_(network.unravel(old)[bias])
            for name, change in news.items():
                new[heads.rows[name]] += change
    # Sketches are of the networks before.
    experts = [replace(e, weights=w, sketch=None) for e, w in zip(space, rotated, strict=True)]
    return replace(space, experts=tuple(experts))


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
