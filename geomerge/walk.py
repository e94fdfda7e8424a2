"""Steps -> a walk: one generator of points per direction, a few copies of the weights at a time.

Both walks keep one function. Toward a function the metric is frozen (a sketch); toward weights it
is measured anew as the walk goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.directions import TowardFunction
from geomerge.errors import NumericalError
from geomerge.metric import Metric
from geomerge.steps import damped_step, precondition, trust_region_step

__all__ = [
    "FunctionWalk",
    "WalkPoint",
    "WeightWalk",
    "walk_straight",
    "walk_toward_function",
    "walk_toward_weights",
]


@dataclass(frozen=True)
class WalkPoint:
    """A point of a walk and the step that led to it.

    Attributes:
        weights: The point, shape (n,); not changed later.
        norm: |theta| of the step.
        predicted: theta' g theta of the step.
        damping: mu of the step.
        distance: What the direction still wants: KL to the teacher, or |target - w|.
    """

    weights: Tensor
    norm: float
    predicted: float
    damping: float
    distance: float


@dataclass(frozen=True)
class FunctionWalk:
    """Settings of a walk toward a function.

    Attributes:
        damping: mu. Larger keeps less of the function and learns more.
        steps: How many.
        learning_rate: Of the first step; it falls linearly to zero.
        momentum: Share of the last step kept in the next.
        batch: Inputs per step.
    """

    damping: float
    steps: int = 240
    learning_rate: float = 0.2
    momentum: float = 0.9
    batch: int = 256


@dataclass(frozen=True)
class WeightWalk:
    """Settings of a walk toward weights, arXiv 2012.09605 eq. (7).

    Attributes:
        steps: At most so many.
        radius: Longest step, the square root of the paper's bound 0.01.
        damping: mu, fixed; None finds it from the secular equation.
        least: Smallest mu that the secular equation may give. While the target is far many mu
            give a step of the wanted length, and the smallest would use up one by one the
            directions that do not matter; a path through all of them at once is shorter.
        refresh: Steps between two measurements of the metric.
        until: Share of the first distance to the target at which the walk ends. It also ends
            when it comes less than 2 % nearer between two measurements of the metric.
    """

    steps: int = 600
    radius: float = 0.1
    damping: float | None = None
    least: float = 1e-3
    refresh: int = 25
    until: float = 0.05


def walk_toward_function(
    start: Tensor,  # (n,)
    metric: Metric,
    direction: TowardFunction,
    walk: FunctionWalk,
) -> Iterator[WalkPoint]:
    """Walk from ``start``, whose function the metric keeps, toward a teacher's function.

    Each step is eq. (7) with momentum, theta = rate (floor + mu) (g + mu I)^-1 v.

    Args:
        start: First point; it is not yielded.
        metric: Frozen metric of the function to keep.
        direction: Gives v.
        walk: Settings.

    Yields:
        One point per step.

    Raises:
        NumericalError: If the distance to the teacher stops being finite.
    """
    w = start
    top = metric.floor + walk.damping
    velocity, energy = torch.zeros_like(w), 0.0  # the sum of moves, and velocity' g velocity
    for step in range(walk.steps):
        distance, v = direction(w)
        if not distance < float("inf"):
            raise NumericalError(
                f"the distance to the teacher is {distance} after {step} steps, expected a finite "
                "number; give a smaller --damping"
            )
        rate = walk.learning_rate * (1 - step / walk.steps)
        move = precondition(metric, v, walk.damping)
        # g move = top v - mu move, so the metric need not be applied again.
        pull = top * v - walk.damping * move
        old = walk.momentum * velocity
        energy = walk.momentum**2 * energy + _dot(move + 2 * old, pull)
        velocity = old + move
        tangent = rate * velocity
        w = w + tangent
        predicted = max(rate**2 * energy, 0.0)
        yield WalkPoint(w, float(tangent.norm()), predicted, walk.damping, distance)


def walk_toward_weights(
    start: Tensor,  # (n,)
    target: Tensor,  # (n,)
    metric_at: Callable[[Tensor], Metric],
    walk: WeightWalk,
    correct: Callable[[Metric, Tensor], Tensor] | None = None,
) -> Iterator[WalkPoint]:
    """Walk from ``start`` to near ``target``, keeping the function that the metric measures.

    The step is eq. (7) toward v = target - w. Its trade-off beta is the smallest that overshoots
    in no direction, beta = 2 (floor + mu); mu follows from the radius. Directions that cost
    nothing are walked first, and mu rises as they are used up.

    Args:
        start: First point; it is not yielded.
        target: Where to.
        metric_at: Measures the metric at a point.
        walk: Settings.
        correct: Given the metric and a point, returns a nearby point with less drift.

    Yields:
        One point per step.
    """
    w = start
    metric = metric_at(w)
    end = max(float((target - start).norm()) * walk.until, walk.radius)
    guess = walk.least
    before = float("inf")
    for step in range(walk.steps):
        v = target - w
        distance = float(v.norm())
        if distance <= end:
            return
        if step and step % walk.refresh == 0:
            if distance > 0.98 * before:
                return
            before = distance
            metric = metric_at(w)
        taken = damped_step(metric, v, walk.damping or walk.least, walk.radius)
        if walk.damping is None and taken.norm < walk.radius * (1 - 1e-6):
            taken = trust_region_step(metric, v, walk.radius, guess=guess)
            guess = taken.damping
        w = w + taken.tangent
        if correct is not None:
            w = correct(metric, w)
        yield WalkPoint(w, taken.norm, taken.predicted, taken.damping, distance)


def walk_straight(
    start: Tensor,  # (n,)
    target: Tensor,  # (n,)
    metric: Metric,
    steps: int,
) -> Iterator[WalkPoint]:
    """Walk to exactly ``target`` in equal straight steps; they have no damping (infinite mu).

    Args:
        start: First point; it is not yielded.
        target: Last point, reached bit for bit.
        metric: Measures the steps.
        steps: How many.

    Yields:
        One point per step.
    """
    gap = target - start
    length, cost = float(gap.norm()), metric.inner(gap, gap)
    for i in range(1, steps + 1):
        point = target if i == steps else start + gap * (i / steps)
        left = length * (1 - (i - 1) / steps)
        yield WalkPoint(point, length / steps, cost / steps**2, float("inf"), left)


def _dot(u: Tensor, v: Tensor) -> float:
    return float((u * v).sum(dtype=torch.float64))
