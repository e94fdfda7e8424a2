"""Rehearsal of remembered tasks: drift of their functions, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.continual.memory import UNSEEN, NetworkOf, TaskMemory
from geomerge.data import Inputs, as_they_are
from geomerge.networks.batches import Batch, batch_size, concat, take, to_device
from geomerge.networks.network import Network
from geomerge.walks.objectives import KLToTeacher, divergence
from geomerge.walks.walk import Direction

__all__ = ["Rehearsal", "RehearsalObjective"]

_MEASURED = 250  # pseudo-inputs and stored inputs of a task on which its drift is measured
_MOST_MEASURED = 5000  # largest number of inputs of all tasks


class Rehearsal:
    """Functions of remembered tasks, on inputs drawn from moments and on stored ones.

    Tasks that share a head are passed together.

    Args:
        memory: Memories of the tasks; those without any inputs are left out.
        network_of: Function of a head that returns the network with its outputs.
        batch: Number of inputs of all tasks per gradient.
        seed: Seed of the order of inputs.

    Attributes:
        count: Number of tasks with inputs.
        inputs: Inputs of each of those tasks.
    """

    def __init__(
        self,
        memory: Sequence[TaskMemory],
        network_of: NetworkOf,
        batch: int,
        seed: int,
    ) -> None:
        by_head: dict[int | None, list[tuple[Batch, Tensor]]] = {}
        self._tasks: list[tuple[str, Network, Batch, Tensor]] = []
        most = min(_MEASURED, max(1, _MOST_MEASURED // max(len(memory), 1)))
        for task in memory:
            x = task.inputs()
            if not batch_size(x):
                continue
            network = network_of(task.head)
            targets = _widened(
                task.targets.float().to(network.device), network, take(x, slice(0, 1))
            )
            by_head.setdefault(task.head, []).append((x, targets))
            order = torch.randperm(batch_size(x), generator=torch.Generator().manual_seed(seed))
            few = order[:most]
            measured = to_device(take(x, few), network.device), targets[few.to(network.device)]
            self._tasks.append((task.name, network, *measured))
        self.count = sum(len(tasks) for tasks in by_head.values())
        self.inputs: list[Inputs] = []
        self._heads: list[tuple[int, KLToTeacher]] = []
        for head, tasks in by_head.items():
            network = network_of(head)
            self.inputs += [as_they_are(x, network.device) for x, _ in tasks]
            x = concat([x for x, _ in tasks])
            inputs, targets = as_they_are(x, network.device), torch.cat([t for _, t in tasks])
            share = max(1, batch * len(tasks) // self.count)
            toward = KLToTeacher(network, targets, inputs, share, seed)
            self._heads.append((len(tasks), toward))

    def __call__(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the sum over tasks of the mean KL on the next batch, and its negative gradient."""
        total, v = 0.0, torch.zeros_like(w)
        for tasks, toward in self._heads:
            distance, back = toward(w)
            total += tasks * distance
            v += tasks * back
        return total, v

    @property
    def names(self) -> list[str]:
        """Names of the tasks with inputs."""
        return [name for name, *_ in self._tasks]

    def drift(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Measure each task on up to 250 inputs, and all of them on up to 5000.

        Returns:
            Mean KL(remembered || network), and the share of answers that changed, by task.
        """
        drift, changed = {}, {}
        for name, network, x, targets in self._tasks:
            logits = network.logits(w, x)
            drift[name] = float(divergence(targets)(logits))
            other = logits.argmax(dim=1) != targets.argmax(dim=1)
            changed[name] = float(other.float().mean())
        return drift, changed


class RehearsalObjective:
    """v = mean of the negative gradients of the experience and of all remembered tasks.

    Args:
        new: Objective of the experience.
        rehearsal: Rehearsal of the remembered tasks.
    """

    def __init__(self, new: Direction, rehearsal: Rehearsal) -> None:
        self._new = new
        self._rehearsal = rehearsal

    def __call__(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the mean distance on the next inputs and v there, shape (n,)."""
        new, v = self._new(w)
        if not self._rehearsal.count:
            return new, v
        old, back = self._rehearsal(w)
        tasks = 1 + self._rehearsal.count
        return (new + old) / tasks, (v + back) / tasks


def _widened(
    targets: Tensor,  # (N, m_old)
    network: Network,
    x: Batch,  # (1, ...)
) -> Tensor:  # (N, m)
    """Return targets on all classes of the network; later classes are as good as impossible."""
    more = network.logits(network.initial, to_device(x, network.device)).shape[1] - targets.shape[1]
    return torch.nn.functional.pad(targets, (0, more), value=UNSEEN)
