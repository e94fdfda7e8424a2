"""Fisher merging (Matena & Raffel 2022): a mean weighted by what each network's outputs feel."""

from __future__ import annotations

from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.fisher import FISHER_INPUTS, diagonal_fisher
from geomerge.comparison.registry import MethodResult, method

__all__ = ["fisher_merge"]

SHARES = tuple(k / 20 for k in range(1, 20))
_FLOOR = 1e-6  # of either Fisher's mean: where both are zero the weights are averaged


def fisher_merge(
    networks: tuple[Tensor, Tensor],  # (n,) each
    fishers: tuple[Tensor, Tensor],  # (n,) each
    share: float = 0.5,
) -> Tensor:  # (n,)
    """Return the mean of two networks weighted entry by entry, eq. (4) of the paper.

    Args:
        networks: Their weights.
        fishers: The diagonals of their Fisher information, not negative; each counts relative to
            its own mean, as the paper's released merges normalise them.
        share: How much the second counts as a whole, the first 1 - share; the paper's lambda.
    """
    one, two = (f / (f.mean() + 1e-30) + _FLOOR for f in fishers)
    a, b = networks
    return a + (b - a) * (share * two / ((1 - share) * one + share * two))


@method("fisher", "activations", "mean weighted by each network's diagonal Fisher information")
def fisher_networks(context: Context) -> MethodResult:
    """Merge by both diagonals, measured without labels, at the best share."""
    a, b = context.a, context.b
    inputs = context.inputs(a, b)
    n = context.network.n_parameters
    fishers = [
        diagonal_fisher(side.network, side.w, x, context.seed)[:n]
        for side, x in zip((a, b), inputs, strict=True)
    ]
    mean = context.sides.middle()

    def point(k: int) -> Tensor:
        merged = mean.clone()
        merged[:n] = fisher_merge((a.w[:n], b.w[:n]), (fishers[0], fishers[1]), SHARES[k])
        return context.settled(merged)

    best, w = context.pick(len(SHARES), point)
    samples = sum(min(FISHER_INPUTS, len(x)) for x in inputs)
    return MethodResult(w, inputs=("a", "b"), samples=samples, chosen={"share": SHARES[best]})
