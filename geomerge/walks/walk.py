"""Steps -> a walk: one generator of points per direction, a few copies of the weights at a time.

Toward a function the metric is frozen (a sketch) or measured anew now and then; toward weights it
is measured anew as the walk goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.metrics import Metric
from geomerge.steps import damped_step, preconditioned_move, trust_region_step
from geomerge.walks.constraints import Constraints
from geomerge.walks.damping import DampingLearner
from geomerge.walks.objectives import Objective
from geomerge.walks.state import WalkState

__all__ = [
    "FunctionWalkOptions",
    "WalkPoint",
    "WeightWalkOptions",
    "walk_straight",
    "walk_toward_function",
    "walk_toward_weights",
]

Direction: TypeAlias = Callable[[Tensor], tuple[float, Tensor]]

_STALL = 25  # steps in which a walk toward weights must come nearer


@dataclass(frozen=True)
class WalkPoint:
    """A point of a walk and the step that led to it.

    Attributes:
        weights: The point, shape (n,); not changed later.
        norm: |theta| of the step.
        predicted: theta' g theta of the step.
        damping: mu of the step.
        distance: What the direction still wants: KL to the teacher, or |target - w|.
        multipliers: Shadow price of each budget that bound the step.
    """

    weights: Tensor
    norm: float
    predicted: float
    damping: float
    distance: float
    multipliers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FunctionWalkOptions:
    """Settings of a walk toward a function.

    Attributes:
        damping: mu. Larger keeps less of the function and learns more.
        steps: How many.
        learning_rate: Of the first step; it falls linearly to zero.
        momentum: Share of the last step kept in the next.
        batch: Inputs per step.
        refresh: Steps before which the metric is measured anew.
    """

    damping: float
    steps: int = 240
    learning_rate: float = 0.2
    momentum: float = 0.9
    batch: int = 256
    refresh: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class WeightWalkOptions:
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
            when it comes less than 2 % nearer in 25 steps.
    """

    steps: int = 600
    radius: float = 0.1
    damping: float | None = None
    least: float = 1e-3
    refresh: int = 25
    until: float = 0.05


def walk_toward_function(
    start: Tensor,  # (n,)
    metric_at: Callable[[Tensor], Metric],
    directions: Sequence[Direction],
    walk: FunctionWalkOptions,
    budgets: Constraints | None = None,
    learner: DampingLearner | None = None,
    settle: Callable[[Tensor], Tensor] | None = None,
    state: WalkState | None = None,
) -> Iterator[WalkPoint]:
    """Walk from ``start`` toward the functions of one or several teachers.

    Each step is eq. (7) with momentum in v, theta = rate (floor + mu) (g + mu I)^-1 v. Teachers
    take turns, so that a step touches one data set only.

    Args:
        start: First point; it is not yielded.
        metric_at: Measures, at a point, the metric of what shall be kept.
        directions: Each gives a distance and v at a point, one for each teacher.
        walk: Settings.
        budgets: What may not get worse; steps that would break one are solved anew and shortened.
        learner: Adjusts mu along the way.
        settle: Applied to the weights whenever the metric is measured: running statistics.
        state: Where the walk is; the directions are those of the next step already.

    Yields:
        One point per step that is left, ``walk.steps`` for each teacher in all.

    Raises:
        NumericalError: If the distance to a teacher stops being finite.
    """
    state = WalkState() if state is None else state
    w, momentum = start, torch.zeros_like(start)
    room = None  # for v; vectors are made once, for a new one costs more than what is done to it
    damping = walk.damping
    first = state.values.get("step", 0)
    if first:
        w, momentum = state.tensors["w"], state.tensors["momentum"].clone()
        damping = state.values["damping"]
        metric = metric_at(state.tensors["measured"])
        if learner is not None:
            learner.metric = metric
    for step in range(first, walk.steps * len(directions)):
        turn, teacher = divmod(step, len(directions))
        if teacher == 0 and turn in walk.refresh:
            w = w if settle is None else settle(w)
            state.tensors["measured"] = w
            metric = metric_at(w)
        rate = walk.learning_rate * (1 - turn / walk.steps)
        direction = directions[teacher]
        if isinstance(direction, Objective):
            distance, v = direction(w, room)
            room = v
        else:
            distance, v = direction(w)
        if not distance < float("inf"):
            raise NumericalError(
                f"the distance to the teacher is {distance} after {turn} steps, expected a "
                "finite number; give a smaller --learning-rate or --damping"
            )
        if learner is not None:
            damping = learner(w, v)
        torch.add(v, momentum, alpha=walk.momentum, out=momentum)
        if budgets is None:
            w, norm, predicted = preconditioned_move(metric, w, momentum, damping, rate)
            multipliers: Mapping[str, float] = {}
        else:
            beta = 2 * rate * (metric.min_eigenvalue + damping)
            kept = budgets.step(w, metric, momentum, damping, beta)
            multipliers, predicted = kept.multipliers, kept.predicted
            w, norm = w + kept.tangent, float(kept.tangent.norm())
        if learner is not None:
            learner.remember(metric, momentum, rate, budgets.last if budgets else None)
        state.values |= {"step": step + 1, "damping": damping}
        state.tensors |= {"w": w, "momentum": momentum}
        yield WalkPoint(w, norm, max(predicted, 0.0), damping, distance, multipliers)


def walk_toward_weights(
    start: Tensor,  # (n,)
    target: Tensor,  # (n,)
    metric_at: Callable[[Tensor], Metric],
    walk: WeightWalkOptions,
    correct: Callable[[Metric, Tensor], Tensor] | None = None,
    budgets: Constraints | None = None,
    state: WalkState | None = None,
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
        budgets: What may not get worse.
        state: Where the walk is.

    Yields:
        One point per step that is left.
    """
    state = WalkState() if state is None else state
    first = state.values.get("step", 0)
    w = state.tensors.get("w", start)
    measured = state.tensors.get("measured", start)
    metric = metric_at(measured)
    end = max(float((target - start).norm()) * walk.until, walk.radius)
    guess = state.values.get("guess", walk.least)
    before = state.values.get("before", float("inf"))
    for step in range(first, walk.steps):
        v = target - w
        distance = float(v.norm())
        if distance <= end:
            return
        if step and step % _STALL == 0:
            if distance > 0.98 * before:
                return
            before = distance
        if step and step % walk.refresh == 0:
            measured, metric = w, metric_at(w)
        taken = damped_step(metric, v, walk.damping or walk.least, walk.radius)
        if walk.damping is None and taken.norm < walk.radius * (1 - 1e-6):
            taken = trust_region_step(metric, v, walk.radius, guess=guess)
            guess = taken.damping
        tangent, predicted, multipliers = taken.tangent, taken.predicted, {}
        if budgets is not None:
            kept = budgets.step(w, metric, v, taken.damping, taken.beta)
            tangent, predicted, multipliers = kept.tangent, kept.predicted, kept.multipliers
        w = w + tangent
        if correct is not None:
            w = correct(metric, w)
        norm = float(tangent.norm())
        state.values |= {"step": step + 1, "guess": guess, "before": before}
        state.tensors |= {"w": w, "measured": measured}
        yield WalkPoint(w, norm, predicted, taken.damping, distance, multipliers)


def walk_straight(
    start: Tensor,  # (n,)
    target: Tensor,  # (n,)
    metric: Metric,
    steps: int,
    state: WalkState | None = None,
) -> Iterator[WalkPoint]:
    """Walk to exactly ``target`` in equal straight steps; they have no damping (infinite mu).

    Args:
        start: First point; it is not yielded.
        target: Last point, reached bit for bit.
        metric: Measures the steps.
        steps: How many.
        state: Where the walk is.

    Yields:
        One point per step that is left.
    """
    state = WalkState() if state is None else state
    gap = target - start
    length, cost = float(gap.norm()), metric.inner(gap, gap)
    for i in range(state.values.get("step", 0) + 1, steps + 1):
        point = target if i == steps else start + gap * (i / steps)
        left = length * (1 - (i - 1) / steps)
        state.values["step"] = i
        yield WalkPoint(point, length / steps, cost / steps**2, float("inf"), left)
