"""Fisher merging (Matena & Raffel 2022): mean weighted by diagonal Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.registry import MethodResult, method
from geomerge.data import Inputs
from geomerge.metrics.kronecker.diagonal import at_tokens, squared_derivatives
from geomerge.networks.network import Network

__all__ = ["FISHER_INPUTS", "diagonal_fisher", "fisher_merge"]

FISHER_INPUTS = 2000  # inputs per network
SHARES = tuple(k / 20 for k in range(1, 20))
_FLOOR = 1e-6  # added to both relative Fishers; weights with zero Fisher are averaged
_ELEMENTS = 2**25  # derivatives held at a time: 128 MiB in float32


def diagonal_fisher(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    seed: int = 0,
) -> Tensor:  # (n,)
    r"""Return F_i = E_x E_{y ~ p(y | x, w)} (d log p(y | x, w) / d w_i)^2, without labels.

    It equals sum_c (d phi_c / d w_i)^2 with phi = 2 sqrt(p). The sum over classes is estimated
    without bias by one random sign vector for each input (Hutchinson 1990).

    Args:
        network: Network.
        w: Weights at which the information is measured.
        inputs: Inputs, of which at most :data:`FISHER_INPUTS` are used.
        seed: Seed of the choice of inputs and of the signs.

    Returns:
        Diagonal, shape (n,), as a mean over inputs or tokens; zero for running statistics.
    """
    sample = inputs.sample(FISHER_INPUTS, seed)
    generator = torch.Generator().manual_seed(seed)
    names = [k for k, place in network.slices.items() if place.stop <= network.n_parameters]
    sums = {name: w.new_zeros(network.shapes[name], dtype=torch.float64) for name in names}
    classes = network.logits(w, sample.batch(slice(0, 1))).shape[1]
    count = 0
    for x in sample.batches(max(1, _ELEMENTS // network.n)):
        rows = len(network.logits(w, x))
        count += rows
        signs = torch.randint(0, 2, (rows, 1, classes), generator=generator).to(w) * 2 - 1
        signs = at_tokens(signs, x)
        squares = squared_derivatives(network, w, names, x, signs, "hellinger")
        for name, square in squares.items():
            sums[name] += square
    fisher = torch.zeros_like(w)
    for name, total in sums.items():
        fisher[network.slices[name]] = (total / count).reshape(-1).to(w)
    return fisher


def fisher_merge(
    networks: tuple[Tensor, Tensor],  # (n,) each
    fishers: tuple[Tensor, Tensor],  # (n,) each
    share: float = 0.5,
) -> Tensor:  # (n,)
    """Return the elementwise weighted mean of two networks, eq. (4) of the paper.

    Args:
        networks: Weights of both networks.
        fishers: Nonnegative diagonals of their Fisher information, each of which is divided by its
            mean, as in the paper's code.
        share: Weight lambda of the second network; the first has 1 - lambda.
    """
    one, two = (f / (f.mean() + 1e-30) + _FLOOR for f in fishers)
    a, b = networks
    return a + (b - a) * (share * two / ((1 - share) * one + share * two))


@method("fisher", "activations", "mean weighted by each network's diagonal Fisher information")
def fisher_networks(context: Context) -> MethodResult:
    """Merge by both diagonals, measured without labels, at the best lambda."""
    a, b = context.a, context.b
    inputs = context.inputs(a, b)
    n = context.network.n_parameters
    fishers = [
        diagonal_fisher(expert.network, expert.weights, x, context.seed)[:n]
        for expert, x in zip((a, b), inputs, strict=True)
    ]
    mean = context.space.middle()

    def point(k: int) -> Tensor:
        merged = mean.clone()
        weights = (a.weights[:n], b.weights[:n])
        merged[:n] = fisher_merge(weights, (fishers[0], fishers[1]), SHARES[k])
        return context.settled(merged)

    best, w = context.pick(len(SHARES), point)
    samples = sum(min(FISHER_INPUTS, len(x)) for x in inputs)
    return MethodResult(w, inputs=("a", "b"), samples=samples, chosen={"share": SHARES[best]})
