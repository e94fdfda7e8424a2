"""Rehearsal of remembered tasks: drift of their functions, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.continual.memory import UNSEEN, NetworkOf, TaskMemory
from geomerge.data import Inputs, as_they_are
from geomerge.networks.batches import Batch, batch_size, concat, take, to_device
from geomerge.networks.network import Network
from geomerge.walks.objectives import KLToTeacher, Objective, divergence, weighted_sum

__all__ = ["Rehearsal", "RehearsalObjective"]

_MEASURED = 250  # pseudo-inputs and stored inputs of a task on which its drift is measured
_PASSED = 500  # of these of several tasks in one pass
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
        objectives: Number of tasks of each head, and their mean distance.
    """

    def __init__(
        self,
        memory: Sequence[TaskMemory],
        network_of: NetworkOf,
        batch: int,
        seed: int,
    ) -> None:
        by_head: dict[int | None, list[tuple[Batch, Tensor]]] = {}
        measured_of: dict[int | None, list[tuple[str, Batch, Tensor]]] = {}
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
            measured = (task.name, take(x, few), targets[few.to(network.device)])
            measured_of.setdefault(task.head, []).append(measured)
        self.count = sum(len(tasks) for tasks in by_head.values())
        self.inputs: list[Inputs] = []
        self.objectives: list[tuple[int, KLToTeacher]] = []
        self._probes: list[tuple[Network, Batch, list[tuple[str, Tensor]]]] = []
        for head, tasks in by_head.items():
            network = network_of(head)
            self.inputs += [as_they_are(x, network.device) for x, _ in tasks]
            x = concat([x for x, _ in tasks])
            inputs, targets = as_they_are(x, network.device), torch.cat([t for _, t in tasks])
            share = max(1, batch * len(tasks) // self.count)
            toward = KLToTeacher(network, targets, inputs, share, seed)
            self.objectives.append((len(tasks), toward))
            together = max(1, _PASSED // most)
            for first in range(0, len(tasks), together):
                part = measured_of[head][first : first + together]
                probe = to_device(concat([x for _, x, _ in part]), network.device)
                self._probes.append((network, probe, [(name, t) for name, _, t in part]))

    def __call__(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the sum over tasks of the mean KL on the next batch, and its negative gradient."""
        total, v = 0.0, torch.zeros_like(w)
        for tasks, toward in self.objectives:
            distance, back = toward(w)
            total += tasks * distance
            v += tasks * back
        return total, v

    @property
    def names(self) -> list[str]:
        """Names of the tasks with inputs."""
        return [name for _, _, tasks in self._probes for name, _ in tasks]

    def drift(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Measure each task on up to 250 inputs, and all of them on up to 5000.

        Returns:
            Mean KL(remembered || network), and the share of answers that changed, by task.
        """
        drift, changed = {}, {}
        for network, x, tasks in self._probes:
            every = network.logits(w, x).split([len(targets) for _, targets in tasks])
            for logits, (name, targets) in zip(every, tasks, strict=True):
                drift[name] = float(divergence(targets)(logits))
                other = logits.argmax(dim=1) != targets.argmax(dim=1)
                changed[name] = float(other.float().mean())
        return drift, changed


class RehearsalObjective:
    """v = mean of the negative gradients of the experience and of all remembered tasks, scaled.

    Args:
        new: Objective of the experience.
        rehearsal: Rehearsal of the remembered tasks.
        scale: Factor of the mean.
    """

    def __init__(self, new: Objective, rehearsal: Rehearsal, scale: float = 1.0) -> None:
        self._new, self._rehearsal, self._scale = new, rehearsal, scale
        self._v: Tensor | None = None  # overwritten in every step
        heads = rehearsal.objectives
        self._at_once = bool(heads) and all(new.passes_with(toward) for _, toward in heads)

    def __call__(
        self,
        w: Tensor,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the mean distance on the next inputs and v there, shape (n,).

        The next call overwrites v.
        """
        tasks = 1 + self._rehearsal.count
        share = self._scale / tasks
        if self._at_once:
            terms = [(1, self._new), *self._rehearsal.objectives]
            scaled = [(share * count, objective) for count, objective in terms]
            losses, self._v = weighted_sum(scaled, w, self._v)
            pairs = zip(terms, losses, strict=True)
            return sum(count * loss for (count, _), loss in pairs) / tasks, self._v
        new, self._v = self._new(w, self._v)
        old, back = self._rehearsal(w)
        return (new + old) / tasks, self._v.add_(back).mul_(share)


def _widened(
    targets: Tensor,  # (N, m_old)
    network: Network,
    x: Batch,  # (1, ...)
) -> Tensor:  # (N, m)
    """Return targets on all classes of the network; later classes are as good as impossible."""
    more = network.logits(network.initial, to_device(x, network.device)).shape[1] - targets.shape[1]
    return torch.nn.functional.pad(targets, (0, more), value=UNSEEN)
