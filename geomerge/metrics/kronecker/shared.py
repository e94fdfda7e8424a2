"""Kronecker factors of second moments, decomposed by one or several processes.

Factors are distributed over processes by their cost; each process sends its decompositions to the
others, as in KAISA (Pauloski et al. 2021, arXiv 2107.01739). Decompositions are bit-identical for
any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metrics.kronecker.factor import Factor, Moments, decomposition_cost
from geomerge.processes import Team

__all__ = ["shared_factors"]


def shared_factors(
    moments: list[Moments],
    widths: Sequence[int],
    counts: Sequence[int],
    like: Tensor,
    mates: Team | None,
) -> list[Factor]:
    """Return the factors of second moments, in the type and on the device of a tensor.

    Args:
        moments: Sums of outer products; those of all processes are added. A single process empties
            the list, so that each sum is freed once its factor is known.
        widths: Width of each factor.
        counts: Total number of terms, over all processes, by which each sum is divided.
        like: Tensor of the type and device of the result.
        mates: Processes that share the work, at once. With None, factors are decomposed when first
            needed.

    Raises:
        NumericalError: If a row was not finite, in every process.
    """
    if mates is None:
        return [moments.pop(0).factor(count).to(like.dtype, like.device) for count in counts]
    blocks: list[Tensor] = []
    for own, width in zip(moments, widths, strict=True):
        blocks += own.exchanged(width, like, mates)
    mates.add(blocks)
    owners = mates.owners([decomposition_cost(width) for width in widths])
    made: list[Factor | NumericalError | None] = [None] * len(moments)
    for k, own in enumerate(moments):
        if owners[k] == mates.rank:
            try:
                made[k] = own.factor(counts[k]).to(like.dtype, like.device).decomposed()
            except NumericalError as error:  # raised after the exchange with the other processes
                made[k] = error
    return [
        _sent(own, width, owner, like, mates)
        for own, width, owner in zip(made, widths, owners, strict=True)
    ]


def _sent(
    made: Factor | NumericalError | None, width: int, owner: int, like: Tensor, mates: Team
) -> Factor:
    """Broadcast a factor from its owner to every process."""
    header = torch.zeros(2, dtype=torch.float64, device=like.device)  # rank, and the tail
    if isinstance(made, Factor):
        header[0], header[1] = made.values.numel(), made.tail
    mates.send(header, owner)
    rank = int(header[0])
    if isinstance(made, NumericalError):
        raise made
    if rank == 0:
        raise NumericalError(
            f"the decomposition of a factor of width {width} failed in process {owner}; see its "
            "own message"
        )
    if made is None:
        made = Factor(like.new_empty(width, rank), like.new_empty(rank), float(header[1]))
    made = Factor(made.vectors.contiguous(), made.values.contiguous(), made.tail)
    mates.send(made.vectors, owner)
    mates.send(made.values, owner)
    return made
