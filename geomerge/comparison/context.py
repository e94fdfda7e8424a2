"""Case that methods are compared on: networks, tasks, pick rule, seed and sample limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from geomerge.data import Inputs, Split
from geomerge.errors import GeomergeError
from geomerge.evaluation.pick import PickRule
from geomerge.evaluation.search import search
from geomerge.expert import Expert
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import PreparedMerge
from geomerge.monitor.progress import Progress
from geomerge.networks.network import Network
from geomerge.weight_space import WeightSpace

__all__ = ["CURVE", "Context", "NotApplicableError"]

CURVE = 15  # points of a method's curve that are drawn
LINE = 41  # candidate points of a straight line


class NotApplicableError(GeomergeError):
    """A method cannot be used on these networks or with this data; others may."""


@dataclass(frozen=True)
class Context:
    """Networks a and b with their tasks: the arguments of all methods of a comparison.

    Attributes:
        prepared: Networks a and b with their tasks in one weight space, options of the walks, and
            the seed of all draws.
        rule: Rule that picks a point on the selection splits.
        max_samples: Largest number of samples of a method with training.
        base: Weights of a common ancestor, shape (n,); None if none was given.
        progress: Function called with the progress of walks.
        measured: Names of the networks whose inputs gave running statistics, filled on the way.
    """

    prepared: PreparedMerge
    rule: PickRule
    max_samples: int
    base: Tensor | None = None
    progress: Callable[[Progress], None] | None = None
    measured: set[str] = field(default_factory=set)

    @property
    def space(self) -> WeightSpace:
        """The weight space of both networks."""
        return self.prepared.space

    @property
    def options(self) -> MergeOptions:
        """The options of the walks."""
        return self.prepared.options

    @property
    def network(self) -> Network:
        """The network with all its outputs."""
        return self.space.network

    @property
    def a(self) -> Expert:
        """The first network."""
        return self.space.experts[0]

    @property
    def b(self) -> Expert:
        """The second network."""
        return self.space.experts[1]

    @property
    def seed(self) -> int:
        """The seed of all draws."""
        return self.options.machine.seed

    def with_expert(self, expert: Expert) -> Context:
        """Return the case with another network in the place of the one of the same name."""
        space = self.space.with_expert(expert)
        return replace(self, prepared=replace(self.prepared, space=space))

    def inputs(self, *experts: Expert) -> list[Inputs]:
        """Return training inputs of tasks, without labels.

        Raises:
            NotApplicableError: If inputs may not be used.
        """
        found = []
        for expert in experts:
            if expert.inputs is None:
                raise NotApplicableError(
                    f"needs inputs of {expert.name}'s task, which were not given; give them as "
                    "`inputs`"
                )
            found.append(expert.inputs)
        return found

    def labelled(self, expert: Expert) -> Split:
        """Return a task's labelled training examples.

        Raises:
            NotApplicableError: If its inputs may not be used, or they are another task's.
        """
        (inputs,) = self.inputs(expert)
        assert expert.task is not None, "a comparison has both tasks"
        if inputs.name != expert.task.name:
            raise NotApplicableError(
                f"needs labels of {expert.task.name}, and {expert.name}'s inputs are others"
                f"{f', of {inputs.name}' if inputs.name else ''}; give the task's own `inputs`"
            )
        return expert.task.train

    def settled(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights with running statistics by the comparison's policy."""
        if self.space.bn == "re-estimate":
            self.measured.update(expert.name for expert in self.space)
        return self.space.settle(w)

    def buffers_of(
        self,
        w: Tensor,  # (n,)
        other: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights whose running statistics are those of another vector."""
        n = self.network.n_parameters
        return torch.cat([w[:n], other[n:]])

    def pick(self, count: int, point: Callable[[int], Tensor]) -> tuple[int, Tensor]:
        """Pick the best of several networks on the selection splits.

        Args:
            count: Number of networks; of 24 and more only those near the best are all measured.
            point: Function that makes the network of a number, shape (n,).

        Returns:
            The number of the best, and its weights.
        """
        scorer = self.prepared.scorer(self.space.experts)
        best, _ = search(range(count), lambda i: scorer(point(i)), self.rule)
        return best, point(best)

    def pick_on_line(
        self,
        start: Tensor,  # (n,)
        end: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Pick the best point of a straight line; return its share of the way, and its weights."""
        return self.pick_share(lambda t: self.settled(torch.lerp(start, end, t)))

    def pick_share(self, point: Callable[[float], Tensor]) -> tuple[float, Tensor]:
        """Pick the best of evenly spread points of a curve, both ends included.

        Args:
            point: Function that makes the point at t in [0, 1], shape (n,).

        Returns:
            t of the best point, and its weights.
        """
        best, w = self.pick(LINE, lambda i: point(i / (LINE - 1)))
        return best / (LINE - 1), w
