"""Measured points of a merge: loss of the experience, drift of remembered tasks, statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.continual.drift_constraints import DriftConstraints
from geomerge.continual.memory import answers
from geomerge.continual.options import ContinualOptions
from geomerge.continual.rehearsal import Rehearsal
from geomerge.continual.report import PathPoint
from geomerge.data import Inputs, as_they_are
from geomerge.data.batchnorm import has_statistics, re_estimate
from geomerge.networks.network import Network
from geomerge.walks.constraints import QuadraticConstraint
from geomerge.walks.objectives import divergence

__all__ = ["Line", "Measure", "best_on_line", "with_statistics"]

_LINE = 10  # parts of the straight line to the expert whose ends are measured
_MEASURED = 500  # inputs of the experience on which points are measured


class Measure:
    """Measures a point's loss on the experience and the drift of remembered tasks.

    Args:
        network: Network as a function of the experience's inputs.
        expert: Weights whose outputs are the targets where there are no labels, shape (n,).
        inputs: Inputs of the experience.
        labels: Labels of the experience; None takes the expert's outputs.
        rehearsal: Remembered tasks with inputs.
        drifts: Quadratic drifts, which measure remembered tasks without any inputs.
    """

    def __init__(
        self,
        network: Network,
        expert: Tensor,  # (n,)
        inputs: Inputs,
        labels: Tensor | None,  # (N,)
        rehearsal: Rehearsal,
        drifts: Sequence[QuadraticConstraint],
    ) -> None:
        self._network = network
        self._rehearsal = rehearsal
        # Half the Fisher form is the KL to second order.
        self._sketched = [drift for drift in drifts if drift.name not in rehearsal.names]
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
        """Measure the point of a step.

        Args:
            step: Number of the step.
            length: Length of the path up to the point.
            w: Weights of the point.
        """
        new = float(self._loss(self._network.logits(w, self._x)))
        drift, changed = self._rehearsal.drift(w)
        drift |= {one.name: one.value(w) / 2 for one in self._sketched}
        return PathPoint(step, length, new, drift, changed)


@dataclass(frozen=True)
class Line:
    """Measured points of the straight line from the network before to the expert.

    Attributes:
        points: Measured points.
        share: Share of the line at the best of them.
        best: Weights of the best, shape (n,).
    """

    points: list[PathPoint]
    share: float
    best: Tensor


def best_on_line(
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    measure: Measure,
    settle: Callable[[Tensor], Tensor],
    limits: DriftConstraints | None,
) -> Line:
    """Measure the straight line to the expert.

    Args:
        start: Weights of the network before.
        expert: Weights of the expert.
        measure: Function that measures points.
        settle: Function that gives points the running statistics that they end with.
        limits: Limits of drift; the line ends before the first point that exceeds one.
    """
    points, weights = [], []
    for i in range(_LINE + 1):
        w = settle(torch.lerp(start, expert, i / _LINE)) if i else start
        if i and limits is not None and not limits.within(w):
            break
        points.append(measure(0, 0.0, w))
        weights.append(w)
    best = min(range(len(points)), key=lambda i: points[i].value)
    return Line(points, best / _LINE, weights[best])


def with_statistics(
    w: Tensor,  # (n,)
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    network: Network,
    inputs: Sequence[Inputs],
    options: ContinualOptions,
) -> Tensor:  # (n,)
    """Return weights with running statistics by the policy of the options.

    Args:
        w: Weights.
        start: Weights of the network before.
        expert: Weights of the expert.
        network: Network as a function of the experience's inputs.
        inputs: Inputs of the experience and of remembered tasks.
        options: Options with the policy.
    """
    if not has_statistics(network):
        return w
    if options.statistics == "measured":
        return re_estimate(network, w, inputs, options.seed)
    source = expert if options.statistics == "expert" else start
    return torch.cat([w[: network.n_parameters], source[network.n_parameters :]])
