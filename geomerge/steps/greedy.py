"""Groups that are moved whole, one after the other, each the cheapest beside those before it.

A group moves or it stays: the relaxed rates of :func:`~geomerge.steps.rates.group_rates` are for
paths, where a group may go half-way now. For a choice made once forward selection on the same
quadratic form is the better rounding, because every decision sees those taken before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.steps.rates import RateProgram, check_progress

__all__ = ["greedy_order"]


def greedy_order(
    program: RateProgram,
    weights: Tensor,  # (k,)
    progress: float,
    already: Tensor | None = None,  # (k,)
) -> Tensor:  # (r,)
    """Choose groups until they make the progress, the cheapest per unit of it first.

    Args:
        program: The cost of the groups' moves.
        weights: How much progress each group's move is, not negative; one of 0 is never chosen.
        progress: What is wanted of all groups that move, those that did already included.
        already: Mask of the groups that have moved, whose interactions with the others count.

    Returns:
        The numbers of the groups chosen, in the order in which they were: the first of them are
        the answer for any smaller progress.

    Raises:
        OptionError: If a weight is negative, or all groups together make less progress.
    """
    weights = weights.detach().cpu().double()
    check_progress(weights, progress, torch.ones_like(weights))
    left = weights > 0
    slope = program.linear + program.hessian.diagonal() / 2  # what adding each alone costs
    missing = progress
    if already is not None:
        moved = already.cpu()
        left &= ~moved
        slope = slope + program.hessian[:, moved].sum(1)
        missing -= float(weights[moved].sum())

    order: list[int] = []
    # Sums of weights miss the progress by rounding: not worth another group.
    while missing > 1e-9 * progress and left.any():
        useful = weights.clamp(max=missing)  # what goes beyond the progress counts for nothing
        price = torch.where(left, slope / useful, torch.inf)
        j = int(price.argmin())
        order.append(j)
        left[j] = False
        slope = slope + program.hessian[:, j]
        missing -= float(weights[j])
    return torch.tensor(order, dtype=torch.long)
