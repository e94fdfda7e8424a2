"""Soft pull toward a plane, eq. (7) of arXiv 2012.09605 with v = P(w) - w, as a baseline.

The plane is chosen at every step from the current weights. The walk approaches the plane without
reaching it, since directions with the largest effect on the function move last; the final
projection changes the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.metrics import Metric
from geomerge.steps import damped_step, trust_region_step
from geomerge.walks.plane import Stage
from geomerge.walks.state import WalkState
from geomerge.walks.walk import WalkPoint

__all__ = ["PullWalkOptions", "walk_by_pull"]


@dataclass(frozen=True)
class PullWalkOptions:
    """Settings of a soft pull.

    Attributes:
        steps: Number of steps.
        least: Smallest mu, as in :class:`~geomerge.walks.walk.WeightWalkOptions`.
        share: Radius of a step as a share of the initial distance to the plane.
        refresh: Number of steps between two measurements of the metric.
    """

    steps: int = 30
    least: float = 1e-3
    share: float = 0.1
    refresh: int = 10


def walk_by_pull(
    start: Tensor,  # (n,)
    plane: Stage,
    metric_at: Callable[[Tensor], Metric],
    walk: PullWalkOptions,
    settle: Callable[[Tensor], Tensor] | None = None,
    state: WalkState | None = None,
) -> Iterator[WalkPoint]:
    """Walk toward a plane by soft pulls, and project onto it at the end.

    Args:
        start: First point, not yielded.
        plane: Function of a point and the metric there that returns the target of the weights.
        metric_at: Function that measures the metric at a point.
        walk: Settings of the walk.
        settle: Function that updates running statistics of the last point.
        state: State of the walk, for resuming.

    Yields:
        One point per remaining step, and the projection.
    """
    state = WalkState() if state is None else state
    if state.values.get("over"):
        return
    w = state.tensors.get("w", start)
    measured = state.tensors.get("measured", start)
    metric = metric_at(measured)
    if "first" not in state.values:
        wanted = plane(w, metric)
        away = torch.where(wanted.free, 0.0, wanted.target - w)
        state.values["first"] = float(away.norm())
    first = state.values["first"]
    radius = walk.share * first
    for step in range(state.values.get("step", 0), walk.steps):
        if step and step % walk.refresh == 0:
            measured, metric = w, metric_at(w)
        wanted = plane(w, metric)
        v = torch.where(wanted.free, 0.0, wanted.target - w)
        distance = float(v.norm())
        if distance == 0:
            break
        taken = damped_step(metric, v, walk.least, radius)
        if taken.norm < radius * (1 - 1e-6) and distance > radius:
            taken = trust_region_step(metric, v, radius, guess=walk.least)
        w = w + taken.tangent
        state.values["step"] = step + 1
        state.tensors |= {"w": w, "measured": measured}
        yield WalkPoint(w, taken.norm, taken.predicted, taken.damping, distance / first)
    wanted = plane(w, metric)
    before = w
    w = torch.where(wanted.free, w, wanted.target)
    w = w if settle is None else settle(w)
    step_taken = w - before
    predicted = max(metric.inner(step_taken, step_taken), 0.0)
    state.values["over"] = True
    yield WalkPoint(w, float(step_taken.norm()), predicted, walk.least, 0.0)
