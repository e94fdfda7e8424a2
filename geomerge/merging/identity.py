"""What holds to the bit whatever the networks: a walk to oneself stays, a rate of zero does too."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.metric import measure_metric, output_map
from geomerge.network import Network
from geomerge.steps import trust_region_step
from geomerge.tasks import Inputs
from geomerge.walk import FunctionWalk, WeightWalk, walk_toward_function

__all__ = ["STANDS", "STAYS", "step_identities"]

STAYS = "a walk from a network to itself has length zero"
STANDS = "a step with beta = 0 does not move"

_INPUTS = 32
_DAMPING = 1e-3


def step_identities(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    metric: str,
    output: str,
    seed: int,
) -> dict[str, bool]:
    """Take two steps that must not move, and return which of them did not.

    The first is a walk's, toward the network's own outputs phi_0: down mean |phi - phi_0|^2 / 2.
    The second is arXiv 2012.09605, eq. (7), with beta = 0.

    Args:
        network: The network.
        w: Where.
        inputs: The first few are used, labels never.
        metric: Name of the metric, measured on them.
        output: What phi is, such as ``"hellinger"``.
        seed: Of the metric.
    """
    few = Inputs(inputs.raw[:_INPUTS], inputs.normalisation, inputs.device)
    x = few.batch(slice(None))
    measured = measure_metric(metric, network, w, few, output, seed)
    own: list[Tensor] = []

    def half_change(logits: Tensor) -> Tensor:
        phi = output_map(logits, output)
        # phi_0 is the first pass: some layers compute otherwise where no gradient is wanted.
        own.append(phi.detach())
        return (phi - own[0]).square().sum(dim=1).mean() / 2

    def direction(at: Tensor) -> tuple[float, Tensor]:
        loss, gradient = network.gradient(at, x, half_change)
        return loss, -gradient

    direction(w)
    one = FunctionWalk(_DAMPING, steps=1)
    (point,) = walk_toward_function(w, lambda _: measured, [direction], one)
    step = trust_region_step(measured, w, WeightWalk.radius, beta=0.0)
    return {
        STAYS: point.predicted == point.norm == 0 and torch.equal(point.weights, w),
        STANDS: step.predicted == 0 and not bool(step.tangent.any()),
    }
