"""Self-tests of a merge: exact ends of the path, zero-length walk, zero-beta step."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.io import paged
from geomerge.io.checkpoint import Checkpoint
from geomerge.io.precision import in_precision
from geomerge.merging import MergeResult
from geomerge.metrics import MetricOptions, measure_metric, output_map
from geomerge.networks.network import Network
from geomerge.steps import trust_region_step
from geomerge.walks.walk import FunctionWalkOptions, WeightWalkOptions, walk_toward_function

__all__ = ["MERGED", "STANDS", "STAYS", "merge_self_tests", "same_network", "step_self_tests"]

MERGED = "merged.safetensors is the path at the crossover"
STAYS = "a walk from a network to itself has length zero"
STANDS = "a step with beta = 0 does not move"

_INPUTS = 32
_DAMPING = 1e-3


def merge_self_tests(stored: Checkpoint, merged: MergeResult) -> dict[str, bool]:
    """Return the results of the self-tests by statement; all must hold bit for bit.

    Args:
        stored: Merged network, read from its file.
        merged: Result of the merge.
    """
    space, path = merged.space, merged.path
    (first, last), given = space.ends, merged.preset.prepared.checkpoint
    statements = {
        f"the path starts at {first.name}": same_network(path.checkpoint(0.0), given(first)),
        f"the path ends at {last.name}": same_network(path.checkpoint(1.0), given(last)),
        MERGED: same_network(stored, path.checkpoint(merged.t)),
    }
    for expert in space:
        if expert.inputs is not None:
            options, seed = merged.options.measure, merged.options.machine.seed
            own = (expert.network, expert.weights, expert.inputs)
            return {**statements, **step_self_tests(*own, options, seed)}
    return statements  # a merge of sketches has no inputs to take steps on


def same_network(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether two checkpoints have bit-identical weights and buffers, in one dtype."""
    expected = in_precision(other.weights, one.meta.get("dtype"))
    if one.weights.keys() != expected.keys():
        return False
    for name, value in one.weights.items():
        if not torch.equal(value, expected[name].to(value.dtype)):
            return False
        paged.release(value, expected[name])
    return True


def step_self_tests(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    options: MetricOptions,
    seed: int,
) -> dict[str, bool]:
    """Take two steps that must have length zero, and return which of them do.

    The first descends the mean |phi - phi_0|^2 / 2 to the network's own outputs phi_0. The second
    is arXiv 2012.09605, eq. (7), with beta = 0.

    Args:
        network: Network to take the steps with.
        w: Weights to start from.
        inputs: Inputs; the first few are used.
        options: Choice of the metric and of its output phi.
        seed: Seed of the metric's random numbers.
    """
    few = inputs.first(_INPUTS)
    x = few.batch(slice(None))
    measured = measure_metric(network, w, few, options, seed=seed)
    own: list[Tensor] = []

    def half_change(logits: Tensor) -> Tensor:
        phi = output_map(logits, options.output)
        # phi_0 is from the first pass with gradients: some layers compute differently without them.
        own.append(phi.detach())
        return (phi - own[0]).square().sum(dim=1).mean() / 2

    def direction(at: Tensor) -> tuple[float, Tensor]:
        loss, gradient = network.gradient(at, x, half_change)
        return loss, -gradient

    direction(w)
    settings = FunctionWalkOptions(_DAMPING, steps=1)
    (point,) = walk_toward_function(w, lambda _: measured, [direction], settings)
    step = trust_region_step(measured, w, WeightWalkOptions.radius, beta=0.0)
    return {
        STAYS: point.predicted == point.norm == 0 and torch.equal(point.weights, w),
        STANDS: step.predicted == 0 and not bool(step.tangent.any()),
    }
