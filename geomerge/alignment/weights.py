r"""Weight matching: permutations of units that minimise the distance to another's weights.

Weight matching of Git Re-Basin (Ainsworth, Hayase & Srinivasa 2023, algorithm 1). With all groups
but one in place, :math:`\langle a, P b \rangle` is linear in the permutation of that one, and the
best one solves an assignment problem. Group after group is solved, until none improves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from geomerge.alignment.groups import PermutationGroup, permute
from geomerge.pruning.parts import Part

__all__ = ["assignment", "match_weights"]

_ROUNDING = 1e-12  # share of |a| |b| below which a gain is rounding


def match_weights(
    groups: Sequence[PermutationGroup],
    a: Tensor,  # (n,)
    b: Tensor,  # (n,)
    seed: int = 0,
) -> Tensor:  # (n,), int64
    """Return the source of each entry of the permuted b, which is no further from a than b.

    The descent starts from b as it is, as in the paper, and from the orders that one sweep along
    the network finds: those of a permuted copy of a are exact there, where the descent alone
    may stop short. The nearer end wins.

    Args:
        groups: Groups of units, in the order of the network.
        a: Weights to come near to.
        b: Weights to permute.
        seed: Seed of the order in which groups are visited.
    """
    still = torch.arange(len(b))
    ends = [_descend(groups, a, b, start, seed) for start in (still, _swept(groups, a, b))]
    return max(ends, key=lambda source: float(a.double() @ b[source.to(b.device)].double()))


def _swept(groups: Sequence[PermutationGroup], a: Tensor, b: Tensor) -> Tensor:  # (n,), int64
    """Match group after group by the tensors in which nothing else is still to be ordered."""
    waiting = Counter(part.tensor for group in groups for part in group.units.parts)
    w, source = b.clone(), torch.arange(len(b))
    for group in groups:
        parts = [part for part in group.units.parts if waiting[part.tensor] == 1]
        order = assignment(_similarity(parts, group.count, a, w), group.blocks)
        for v in (w, source):
            permute(group, order, v)
        waiting.subtract(part.tensor for part in group.units.parts)
    return source


def _descend(
    groups: Sequence[PermutationGroup], a: Tensor, b: Tensor, start: Tensor, seed: int
) -> Tensor:  # (n,), int64
    """Solve one group after the other in random order until none improves."""
    generator = torch.Generator().manual_seed(seed)
    w, source = b[start.to(b.device)], start.clone()
    improved = True
    while improved:
        improved = False
        for i in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[i]
            order = assignment(_similarity(group.units.parts, group.count, a, w), group.blocks)
            tried = w.clone()
            permute(group, order, tried)
            # Not read off the similarity: a tensor that the group both makes and reads is not
            # linear in the order.
            scale = _product(group, a, a) * _product(group, w, w)
            gain = _product(group, a, tried) - _product(group, a, w)
            if gain > _ROUNDING * scale**0.5:
                w, improved = tried, True
                permute(group, order, source)
    return source


def assignment(
    similarity: Tensor,  # (units, units)
    blocks: int = 1,
) -> Tensor:  # (units,)
    """Return the permutation of the second network's units nearest to the first's.

    Args:
        similarity: Similarity of each unit of the first network, in rows, to each of the second,
            in columns.
        blocks: Number of blocks of units that stay together. The best orders within each pair of
            blocks are found first, then which block goes where.
    """
    matrix = similarity.cpu().numpy()
    if blocks in (1, len(matrix)):
        return torch.from_numpy(linear_sum_assignment(matrix, maximize=True)[1])
    size = len(matrix) // blocks
    worth = np.empty((blocks, blocks))
    orders = np.empty((blocks, blocks, size), dtype=np.int64)
    for i, j in np.ndindex(blocks, blocks):
        inside = matrix[i * size : (i + 1) * size, j * size : (j + 1) * size]
        rows, columns = linear_sum_assignment(inside, maximize=True)
        worth[i, j], orders[i, j] = inside[rows, columns].sum(), j * size + columns
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return torch.from_numpy(orders[rows, columns].reshape(-1))


def _similarity(
    parts: Sequence[Part], count: int, a: Tensor, b: Tensor
) -> Tensor:  # (units, units), float64
    """Return the inner products of what belongs to each unit of a and of b."""
    total = torch.zeros(count, count, dtype=torch.float64)
    for part in parts:
        one, two = (
            v[part.span].view(part.shape).movedim(part.dim, 0)[part.indices].flatten(1)
            for v in (a, b)
        )
        total += (one @ two.T).double().cpu()
    return total


def _product(group: PermutationGroup, a: Tensor, b: Tensor) -> float:
    """Return the inner product of a and b on the tensors that a group touches."""
    spans = {part.tensor: part.span for part in group.units.parts}
    return sum(float(a[span].double() @ b[span].double()) for span in spans.values())
