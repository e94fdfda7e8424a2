"""Context of a comparison: networks, tasks, pick rule, seed and sample limit."""

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

CURVE = 15  # number of points in the plot of a method's curve
LINE = 41  # number of candidates on a straight line


class NotApplicableError(GeomergeError):
    """Error for a method that is not applicable to these networks or data."""


@dataclass(frozen=True)
class Context:
    """Networks a and b with their tasks, the argument of all methods.

    Attributes:
        prepared: Networks a and b with their tasks in one weight space, options of the walks, and
            the seed.
        rule: Rule for picking a point on the selection splits.
        max_samples: Largest number of samples for a method with training.
        base: Weights of a common ancestor, shape (n,), or None.
        progress: Function called with the progress of walks.
        measured: Names of networks whose inputs were used for running statistics; updated by
            methods.
    """

    prepared: PreparedMerge
    rule: PickRule
    max_samples: int
    base: Tensor | None = None
    progress: Callable[[Progress], None] | None = None
    measured: set[str] = field(default_factory=set)

    @property
    def space(self) -> WeightSpace:
        """Weight space of both networks."""
        return self.prepared.space

    @property
    def options(self) -> MergeOptions:
        """Options of the walks."""
        return self.prepared.options

    @property
    def network(self) -> Network:
        """Network with all outputs."""
        return self.space.network

    @property
    def a(self) -> Expert:
        """First network."""
        return self.space.experts[0]

    @property
    def b(self) -> Expert:
        """Second network."""
        return self.space.experts[1]

    @property
    def seed(self) -> int:
        """Seed of all random numbers."""
        return self.options.machine.seed

    def with_expert(self, expert: Expert) -> Context:
        """Return the context with the network of the same name replaced."""
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
            NotApplicableError: If its inputs may not be used, or are those of another task.
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
        """Return weights with running statistics treated as the options say."""
        if self.space.bn == "re-estimate":
            self.measured.update(expert.name for expert in self.space)
        return self.space.settle(w)

    def buffers_of(
        self,
        w: Tensor,  # (n,)
        other: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights with the running statistics of another vector."""
        n = self.network.n_parameters
        return torch.cat([w[:n], other[n:]])

    def pick(self, count: int, point: Callable[[int], Tensor]) -> tuple[int, Tensor]:
        """Pick the best of several networks on the selection splits.

        Args:
            count: Number of networks; from 24 on, only those near the best are all measured.
            point: Function of an index that returns a network's weights, shape (n,).

        Returns:
            Index of the best network, and its weights.
        """
        scorer = self.prepared.scorer(self.space.experts)
        best, _ = search(range(count), lambda i: scorer(point(i)), self.rule)
        return best, point(best)

    def pick_on_line(
        self,
        start: Tensor,  # (n,)
        end: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Pick the best point of a straight line; return its t in [0, 1] and its weights."""
        return self.pick_share(lambda t: self.settled(torch.lerp(start, end, t)))

    def pick_share(self, point: Callable[[float], Tensor]) -> tuple[float, Tensor]:
        """Pick the best of equally spaced points of a curve, ends included.

        Args:
            point: Function of t in [0, 1] that returns the point, shape (n,).

        Returns:
            t of the best point, and its weights.
        """
        best, w = self.pick(LINE, lambda i: point(i / (LINE - 1)))
        return best / (LINE - 1), w
