"""Objective of several teachers on batches that mix their inputs, for networks with BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.data.batchnorm import batch_statistics
from geomerge.networks.batches import batch_size, concat
from geomerge.networks.network import Network
from geomerge.walks.objectives import KLToTeacher

__all__ = ["KLToTeachers"]


class KLToTeachers:
    """Mean of KL(teacher || network) over several teachers, on batches with inputs of each.

    BatchNorm normalises a batch by its own statistics, and gradients pass through these, as in
    training. Running statistics of one point are wrong a few steps later, and without
    normalisation only far smaller steps are stable. A batch mixes all tasks because the network's
    running statistics do.

    Several processes compute every batch whole, since statistics of a share of it are others.

    Args:
        network: Network that walks, with the outputs of all teachers.
        parts: Objective of each teacher, whose network has the columns of that teacher's outputs.
        answers_all: Whether each teacher answers for all inputs of a batch as well, at the same
            weight as for its own: more inputs to copy its function on, and no label is needed.
    """

    def __init__(
        self,
        network: Network,
        parts: Sequence[tuple[slice, KLToTeacher]],
        answers_all: bool = False,
    ) -> None:
        self._network, self._parts, self._answers_all = network, parts, answers_all

    def __call__(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the mean KL on the next batch and v, its negative gradient, shape (n,).

        Args:
            w: Weights.
        """
        drawn = [part.draw() for _, part in self._parts]
        sizes, whole = [batch_size(x) for x, _ in drawn], concat([x for x, _ in drawn])
        everywhere = [part.answer(whole) for _, part in self._parts] if self._answers_all else []

        def negative(logits: Tensor) -> Tensor:
            losses = [
                loss_of(rows[:, columns])
                for rows, (columns, _), (_, loss_of) in zip(
                    logits.split(sizes), self._parts, drawn, strict=True
                )
            ]
            for (columns, _), loss_of in zip(self._parts, everywhere, strict=self._answers_all):
                losses.append(loss_of(logits[:, columns]))
            return -torch.stack(losses).mean()

        with batch_statistics(self._network):
            value, v = self._network.gradient(w, whole, negative)
        return -value, v

    def skip(self, batches: int) -> None:
        """Draw batches without using them, to resume an interrupted walk.

        Args:
            batches: Number of batches that were used before.
        """
        for _, part in self._parts:
            part.skip(batches)
