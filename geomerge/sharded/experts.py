"""Networks of a sharded merge, read one after the other into the same shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from geomerge.errors import TaskError
from geomerge.evaluation.pick import USUAL, PickRule, parse_pick
from geomerge.sharded.data import NetworkData, unlabelled
from geomerge.sharded.network import ShardedNetwork
from geomerge.sharded.sources import Sources
from geomerge.sharded.walk import Teacher, answers, share_right

__all__ = ["Experts"]


class Experts:
    """Networks that a sharded network is set to, and their answers and accuracies.

    Args:
        network: Network whose shards are set.
        sources: Weights of all networks.
        data: Data of each network, by its name.
        at_once: Number of inputs per process and pass.

    Attributes:
        network: Network whose shards are set.
        sources: Weights of all networks.
        data: Data of each network, by its name.
        teachers: Answers of each network that was listened to, in order.
        scores: Accuracies of each of these on its own splits, where there are labels.
    """

    def __init__(
        self,
        network: ShardedNetwork,
        sources: Sources,
        data: Mapping[str, NetworkData],
        at_once: int,
    ) -> None:
        self.network, self.sources, self.data = network, sources, data
        self._at_once = at_once
        self.teachers: list[Teacher] = []
        self.scores: dict[str, dict[str, float]] = {}

    @property
    def unlabelled(self) -> list[str]:
        """Names of the networks without labels."""
        return unlabelled(self.data)

    def to_mean(self) -> None:
        """Set the network to the mean of all networks' weights."""
        self._read(partial(self.sources.mean_rows, dtype=self.network.dtype))

    def listen(self, name: str) -> None:
        """Set the network to one of the networks, and keep its answers and accuracies.

        Args:
            name: Name of the network.

        Raises:
            TaskError: If it has fewer outputs than its task has classes.
        """
        self._read(partial(self.sources.rows, name))
        self.network.use(self.sources.number(name))
        one = self.data[name]
        targets = answers(self.network, one.inputs, self._at_once)
        if one.task is not None and targets.shape[1] < one.task.classes:
            raise TaskError(
                f"{self.sources.folders[name]} has {targets.shape[1]} outputs and {one.name} has "
                f"{one.task.classes} classes; name the task that it was fine-tuned for"
            )
        self.teachers.append(Teacher(one.inputs, targets))
        if one.task is not None:
            self.scores[name] = {
                split: share_right(self.network, getattr(one.task, split), self._at_once)
                for split in ("select", "test")
            }

    def accuracies(self, split: str) -> dict[str, float]:
        """Return the accuracy of the network as it is on each task, with the task's own layers.

        Args:
            split: ``"select"`` or ``"test"``.
        """
        found = {}
        for name, one in self.data.items():
            if one.task is not None:
                self.network.use(self.sources.number(name))
                found[name] = share_right(self.network, getattr(one.task, split), self._at_once)
        return found

    def rule(self, pick: str | None) -> PickRule | None:
        """Return the rule by which a point is picked; None takes the last one.

        Args:
            pick: Text of the rule; None takes the usual one, where all tasks have labels.
        """
        if self.unlabelled:
            return None
        return parse_pick(pick or USUAL, {k: own["select"] for k, own in self.scores.items()})

    def _read(self, rows: Callable[[str, int, int], Tensor]) -> None:
        """Set the network's shards, and refuse numbers that are not finite."""
        total = 0.0

        def counted(name: str, start: int, stop: int) -> Tensor:
            nonlocal total
            found = rows(name, start, stop).to(self.network.dtype)
            total += float(found.abs().double().sum())
            return found

        self.network.fill(counted)
        self.sources.check_finite(total, self.network.mates)
