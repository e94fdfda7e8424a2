"""A network on unlabelled inputs -> the diagonal of its Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.metrics.kronecker.diagonal import squared_derivatives
from geomerge.networks.network import Network

__all__ = ["FISHER_INPUTS", "diagonal_fisher"]

FISHER_INPUTS = 2000  # of each network
_ELEMENTS = 2**25  # derivatives held at a time: 128 MiB in float32


def diagonal_fisher(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    seed: int = 0,
) -> Tensor:  # (n,)
    r"""Return F_i = E_x E_{y ~ p(y | x, w)} (d log p(y | x, w) / d w_i)^2, without labels.

    In the form sum_c (d phi_c / d w_i)^2 with phi = 2 sqrt(p); its sum over classes is taken by
    one random sign vector for each input, whose expectation it is (Hutchinson 1990).

    Args:
        network: The network.
        w: Where.
        inputs: At most :data:`FISHER_INPUTS` of them are used.
        seed: Chooses them and the signs.

    Returns:
        The mean over inputs; zero for running statistics.
    """
    sample = inputs.sample(FISHER_INPUTS, seed)
    generator = torch.Generator().manual_seed(seed)
    names = [k for k, place in network.slices.items() if place.stop <= network.n_parameters]
    sums = {name: w.new_zeros(network.shapes[name], dtype=torch.float64) for name in names}
    classes = network.logits(w, sample.batch(slice(0, 1))).shape[1]
    for x in sample.batches(max(1, _ELEMENTS // network.n)):
        signs = torch.randint(0, 2, (len(x), 1, classes), generator=generator).to(w) * 2 - 1
        found = squared_derivatives(network, w, names, [], x, signs, "hellinger")
        for name, squares in found.items():
            sums[name] += squares
    fisher = torch.zeros_like(w)
    for name, total in sums.items():
        fisher[network.slices[name]] = (total / len(sample)).reshape(-1).to(w)
    return fisher
