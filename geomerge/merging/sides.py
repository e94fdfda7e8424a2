"""What each network brings to a merge: weights, inputs, labels, a sketch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomerge.alignment import Alignment
from geomerge.data import (
    Inputs,
    Task,
)
from geomerge.data.batchnorm import re_estimate
from geomerge.io.checkpoint import Checkpoint
from geomerge.metrics.sketch import Sketch
from geomerge.networks.network import Network

__all__ = ["NAMES", "Side", "Sides"]

NAMES = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class Side:
    """One of the networks.

    Attributes:
        name: ``"a"``, ``"b"``, ...
        checkpoint: Its file; in an offset or separate head its weights with the widened head.
        network: The network as this side's task sees it: all outputs or its own block.
        w: Its weights, shape (n,).
        sketch: Its metric on its own task; None without one.
        sketched_now: Whether the merge itself made the sketch, from the manifold's inputs.
        task: Its task with labels, for choosing and reporting; None if not known or not there.
        manifold: Inputs that the walk may use; None if none were given.
        manifold_name: The task that they are of.
        offset: What was added to the task's class numbers.
        rows: Which outputs are its own, in an offset or separate head.
        alignment: How its units were put in the order of the first network's, if they were; then
            checkpoint, weights and sketch are those of the permuted network.
    """

    name: str
    checkpoint: Checkpoint
    network: Network
    w: Tensor
    offset: int = 0
    rows: slice = field(default_factory=lambda: slice(None))
    sketch: Sketch | None = None
    sketched_now: bool = False
    task: Task | None = None
    manifold: Inputs | None = None
    manifold_name: str | None = None
    alignment: Alignment | None = None


@dataclass
class Sides:
    """All networks as points of one weight space, and what there is to say about them.

    Attributes:
        network: The network with all its outputs.
        all: The sides, in the order given; the path leads from the first to the last.
        head: Protocol of the head.
        bn: What happens to running statistics; None where there are none.
        notes: Sentences for the user.
    """

    network: Network
    all: list[Side]
    head: str
    bn: str | None = None
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Side]:
        """Iterate over the sides."""
        return iter(self.all)

    def __getitem__(self, name: str) -> Side:
        """Return the side of a name."""
        return next(side for side in self.all if side.name == name)

    def middle(self) -> Tensor:  # (n,)
        """Return the mean of all: nearer to each network than they are to each other."""
        return torch.stack([side.w for side in self]).mean(dim=0)

    @property
    def common_zeros(self) -> Tensor:  # (n,), bool
        """Where every network has a weight that is exactly zero; never a running statistic."""
        zero = torch.stack([side.w == 0 for side in self]).all(dim=0)
        zero[self.network.n_parameters :] = False
        return zero

    def settled(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights with running statistics as the policy wants them."""
        if self.bn != "re-estimate":
            return w
        return re_estimate(self.network, w, [s.manifold for s in self if s.manifold is not None])
