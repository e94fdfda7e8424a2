"""Points of a merge: what they still lack, what has drifted, and their running statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from geomerge.continual.kept import DriftConstraints
from geomerge.continual.memory import answers
from geomerge.continual.rehearsal import Rehearsal
from geomerge.continual.report import PathPoint
from geomerge.continual.settings import ContinualOptions
from geomerge.data import Inputs, as_they_are
from geomerge.data.batchnorm import has_statistics, re_estimate
from geomerge.networks.network import Network
from geomerge.walks.constraints import QuadraticConstraint
from geomerge.walks.objectives import divergence

__all__ = ["Measure", "best_on_line", "with_statistics"]

_LINE = 10  # parts of the straight line to the expert whose ends are measured
_MEASURED = 500  # inputs of the experience on which points are


class Measure:
    """Measures what a point still lacks of the experience, and how far remembered tasks drifted.

    Args:
        network: The network as a function of the experience's inputs.
        expert: Whose outputs are wanted, where there are no labels.
        inputs: Of the experience.
        labels: Its labels, where they are used.
        rehearsal: The remembered tasks.
        kept: What their sketches say, for those without any inputs.
    """

    def __init__(
        self,
        network: Network,
        expert: Tensor,  # (n,)
        inputs: Inputs,
        labels: Tensor | None,  # (N,)
        rehearsal: Rehearsal,
        kept: Sequence[QuadraticConstraint],
    ) -> None:
        self._network = network
        self._rehearsal = rehearsal
        # Of tasks without any inputs the sketch says it: half the Fisher form is the KL, to second
        # order.
        self._sketched = [k for k in kept if k.name not in rehearsal.names]
        index = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:_MEASURED]
        self._x = inputs.batch(index)
        if labels is None:
            few = as_they_are(self._x, network.device)
            self._loss = divergence(answers(network, expert, few))
        else:
            right = labels[index.to(labels.device)].to(network.device)
            self._loss = lambda logits: torch.nn.functional.cross_entropy(logits, right)

    def __call__(
        self,
        step: int,
        length: float,
        w: Tensor,  # (n,)
    ) -> PathPoint:
        """Measure a point that a step has reached."""
        new = float(self._loss(self._network.logits(w, self._x)))
        drift, changed = self._rehearsal.drift(w)
        drift |= {k.name: k.value(w) / 2 for k in self._sketched}
        return PathPoint(step, length, new, drift, changed)


def best_on_line(
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    measure: Measure,
    settle: Callable[[Tensor], Tensor],
    limits: DriftConstraints | None,
) -> tuple[list[PathPoint], float, Tensor]:
    """Return what a long walk would reach at once: the best point of the line to the expert.

    Args:
        start: The network before.
        expert: The expert.
        measure: Measures points.
        settle: Gives points the running statistics that they end with.
        limits: Budgets; the line ends before the first point that breaks one.

    Returns:
        The measured points, the share of the way that the best has gone, and its weights, (n,).
    """
    points, weights = [], []
    for i in range(_LINE + 1):
        w = settle(torch.lerp(start, expert, i / _LINE)) if i else start
        if i and limits is not None and not limits.within(w):
            break
        points.append(measure(0, 0.0, w))
        weights.append(w)
    best = min(range(len(points)), key=lambda i: points[i].value)
    return points, best / _LINE, weights[best]


def with_statistics(
    w: Tensor,  # (n,)
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    network: Network,
    manifolds: Sequence[Inputs],
    settings: ContinualOptions,
) -> Tensor:  # (n,)
    """Return weights with running statistics by the policy of the settings.

    Args:
        w: The weights.
        start: The network before.
        expert: The expert.
        network: The network as a function of the experience's inputs.
        manifolds: Inputs of the experience and of remembered tasks.
        settings: With the policy.
    """
    if not has_statistics(network):
        return w
    if settings.statistics == "measured":
        return re_estimate(network, w, manifolds, settings.seed)
    source = expert if settings.statistics == "expert" else start
    return torch.cat([w[: network.n_parameters], source[network.n_parameters :]])
