r"""Weight matching: permutations of units that minimise the distance of two weight vectors.

Weight matching of Git Re-Basin (Ainsworth, Hayase & Srinivasa 2023, algorithm 1). For fixed
permutations of all other groups, :math:`\langle a, P b \rangle` is linear in the permutation of one
group, and the best permutation solves an assignment problem. Groups are solved in turn until none
improves.
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

_ROUNDING = 1e-12  # smallest significant gain, relative to |a| |b|


def match_weights(
    groups: Sequence[PermutationGroup],
    a: Tensor,  # (n,)
    b: Tensor,  # (n,)
    seed: int = 0,
) -> Tensor:  # (n,), int64
    """Return the source of each entry of the permuted b, which is at least as close to a as b.

    The descent starts from b, as in the paper, and from the permutations found by one sweep along
    the network; the better result is returned. For a permuted copy of a the sweep is exact, while
    the descent alone can end in a local optimum.

    Args:
        groups: Groups of units, in the order of the network.
        a: Reference weights.
        b: Weights to permute.
        seed: Seed of the order in which groups are visited.
    """
    still = torch.arange(len(b))
    ends = [_descend(groups, a, b, start, seed) for start in (still, _swept(groups, a, b))]
    return max(ends, key=lambda source: float(a.double() @ b[source.to(b.device)].double()))


def _swept(groups: Sequence[PermutationGroup], a: Tensor, b: Tensor) -> Tensor:  # (n,), int64
    """Match groups in order, each by the tensors that no unmatched group touches."""
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
    """Solve groups in random order until none improves."""
    generator = torch.Generator().manual_seed(seed)
    w, source = b[start.to(b.device)], start.clone()
    tensors = [{part.tensor for part in group.units.parts} for group in groups]
    due = set(range(len(groups)))  # the others have not changed since they did not improve
    while due:
        for i in torch.randperm(len(groups), generator=generator).tolist():
            if i not in due:
                continue
            group = groups[i]
            order = assignment(_similarity(group.units.parts, group.count, a, w), group.blocks)
            tried = w.clone()
            permute(group, order, tried)
            # Not computed from the similarity: a tensor that the group both produces and consumes
            # is not linear in the permutation.
            scale = _product(group, a, a) * _product(group, w, w)
            gain = _product(group, a, tried) - _product(group, a, w)
            if gain > _ROUNDING * scale**0.5:
                w = tried
                permute(group, order, source)
                due |= {k for k, own in enumerate(tensors) if own & tensors[i]}
            else:
                due.remove(i)
    return source


def assignment(
    similarity: Tensor,  # (units, units)
    blocks: int = 1,
) -> Tensor:  # (units,)
    """Return the permutation of the second network's units with the largest similarity.

    Args:
        similarity: Similarities of units of the first network (rows) and the second (columns).
        blocks: Number of blocks of units that are kept together. Permutations within each pair of
            blocks are solved first, then the assignment of blocks.
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
    """Return the inner products of the weights of each unit of a and each unit of b."""
    total = torch.zeros(count, count, dtype=torch.float64)
    for part in parts:
        one, two = (
            v[part.span].view(part.shape).movedim(part.dim, 0)[part.indices].flatten(1)
            for v in (a, b)
        )
        total += (one @ two.T).double().cpu()
    return total


def _product(group: PermutationGroup, a: Tensor, b: Tensor) -> float:
    """Return the inner product of a and b on the tensors of a group."""
    spans = {part.tensor: part.span for part in group.units.parts}
    return sum(float(a[span].double() @ b[span].double()) for span in spans.values())
