"""All that a method of the comparison may use: networks, tasks, the pick, seed and budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomerge.data import Inputs, Split
from geomerge.errors import GeomergeError
from geomerge.evaluation.pick import PickRule, search
from geomerge.merging.options import MergeOptions
from geomerge.merging.scoring import Scorer
from geomerge.merging.sides import Side, Sides
from geomerge.monitor.progress import Progress
from geomerge.networks.network import Network

__all__ = ["CURVE", "Context", "NotApplicableError"]

CURVE = 15  # points of what led to a row that are drawn
LINE = 41  # points of a straight line that are picked from


class NotApplicableError(GeomergeError):
    """A method cannot be used on these networks, or with this data; the others can."""


@dataclass(frozen=True)
class Context:
    """The case that methods are compared on.

    Attributes:
        sides: Networks a and b with their tasks.
        options: Of the walks; ``seed`` is of everything drawn.
        rule: How a point is picked on the selection splits.
        budget: Most samples that a trained row may see.
        base: Weights of a common ancestor, shape (n,); None if none was given.
        on_progress: Told how walks go.
        measured: The networks whose inputs gave running statistics; it fills as that happens.
    """

    sides: Sides
    options: MergeOptions
    rule: PickRule
    budget: int
    base: Tensor | None = None
    on_progress: Callable[[Progress], None] | None = None
    measured: set[str] = field(default_factory=set)

    @property
    def network(self) -> Network:
        """The network with all its outputs."""
        return self.sides.network

    @property
    def a(self) -> Side:
        """The first network."""
        return self.sides.all[0]

    @property
    def b(self) -> Side:
        """The second network."""
        return self.sides.all[1]

    @property
    def seed(self) -> int:
        """The seed of everything drawn."""
        return self.options.seed

    def inputs(self, *sides: Side) -> list[Inputs]:
        """Return training inputs of tasks, without labels.

        Raises:
            NotApplicableError: If one may not be used.
        """
        found = []
        for side in sides:
            if side.manifold is None:
                raise NotApplicableError(
                    f"needs inputs of {side.name}'s task, which were not given; name them with "
                    "--manifold"
                )
            found.append(side.manifold)
        return found

    def labelled(self, side: Side) -> Split:
        """Return a task's labelled training examples.

        Raises:
            NotApplicableError: If its inputs may not be used, or they are another task's.
        """
        self.inputs(side)
        assert side.task is not None, "a comparison has both tasks"
        if side.manifold_name != side.task.name:
            raise NotApplicableError(
                f"needs labels of {side.task.name}, and {side.name}'s manifold is "
                f"{side.manifold_name}; name the task itself with --manifold"
            )
        return side.task.train

    def settled(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights with running statistics as the comparison's policy wants them."""
        if self.sides.bn == "re-estimate":
            self.measured.update(side.name for side in self.sides)
        return self.sides.settled(w)

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
            count: How many; of 24 and more only those near the best are all measured.
            point: Makes one, shape (n,).

        Returns:
            Which, and its weights.
        """
        scorer = Scorer(self.sides.all, self.options.output)
        best, _ = search(range(count), lambda i: scorer(point(i)), self.rule)
        return best, point(best)

    def pick_on_line(
        self,
        start: Tensor,  # (n,)
        end: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Pick the best point of a straight line; returns its share of the way, and its weights."""
        return self.pick_share(lambda t: self.settled(torch.lerp(start, end, t)))

    def pick_share(self, point: Callable[[float], Tensor]) -> tuple[float, Tensor]:
        """Pick the best of evenly spread points of a curve, ends included; returns t and weights.

        Args:
            point: Makes the point at t in [0, 1], shape (n,).
        """
        best, w = self.pick(LINE, lambda i: point(i / (LINE - 1)))
        return best / (LINE - 1), w
