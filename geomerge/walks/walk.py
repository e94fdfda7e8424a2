"""Walks in weight space toward functions, toward weights, and in a straight line.

Walks are generators of points. Toward a function the metric is frozen (a sketch) or measured again
at a few steps; toward weights it is measured again at regular intervals. A walk holds a few vectors
of length n.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.io import paged
from geomerge.metrics import Metric
from geomerge.steps import damped_step, preconditioned_move, trust_region_step
from geomerge.walks.constraints import Constraints
from geomerge.walks.damping import DampingLearner
from geomerge.walks.objectives import Objective
from geomerge.walks.state import WalkState

__all__ = [
    "FunctionWalkOptions",
    "WalkControl",
    "WalkPoint",
    "WeightWalkOptions",
    "walk_straight",
    "walk_toward_function",
    "walk_toward_weights",
]

Direction: TypeAlias = Callable[[Tensor], tuple[float, Tensor]]

_STALL = 25  # steps within which a walk toward weights must make progress
_LARGE = 0.1  # nats by which distances near zero may rise


@dataclass(frozen=True)
class WalkPoint:
    """Point of a walk with the numbers of its step.

    Attributes:
        weights: Weights, shape (n,); never changed in place.
        norm: Length |theta| of the step.
        predicted: Predicted functional change theta' g theta of the step.
        damping: Damping mu of the step.
        distance: Distance before the step: KL to the teacher, or |target - w|.
        multipliers: Shadow prices of the active constraints, by name.
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
        damping: Damping mu. Larger values preserve the function less and approach the teacher
            faster.
        steps: Number of steps.
        learning_rate: Learning rate of the first step; it falls linearly to zero.
        momentum: Weight of the previous direction in the next.
        batch: Number of inputs per step.
        refresh: Numbers of the steps before which the metric is measured.
        rise: Largest mean distance to all teachers, as a multiple of that of the first steps; with
            more, and 0.1 nats, the walk has diverged. None allows any finite distance.
    """

    damping: float
    steps: int = 240
    learning_rate: float = 0.2
    momentum: float = 0.9
    batch: int = 256
    refresh: tuple[int, ...] = (0,)
    rise: float | None = None


@dataclass(frozen=True)
class WeightWalkOptions:
    """Settings of a walk toward weights, arXiv 2012.09605 eq. (7).

    Attributes:
        steps: Largest number of steps.
        radius: Largest length of a step, the square root of the paper's bound 0.01.
        damping: Fixed mu; None finds mu from the secular equation.
        least: Smallest mu of the secular equation. Far from the target many values of mu give a
            step of the required length; with the smallest, directions without effect are used up
            one after the other, and the path is longer than along all of them at once.
        refresh: Number of steps between two measurements of the metric.
        until: Share of the initial distance to the target at which the walk ends. It also ends if
            the distance falls by less than 2 % in 25 steps.
    """

    steps: int = 600
    radius: float = 0.1
    damping: float | None = None
    least: float = 1e-3
    refresh: int = 25
    until: float = 0.05


@dataclass(frozen=True)
class WalkControl:
    """Constraints, damping learner, running statistics and state of a walk toward a function.

    Attributes:
        budgets: Constraints; steps that violate one are solved again with its row.
        learner: Learner of mu; None keeps the damping of the settings.
        settle: Function that updates running statistics whenever the metric is measured.
        state: State of the walk, for resuming; the directions must be at their next batch.
    """

    budgets: Constraints | None = None
    learner: DampingLearner | None = None
    settle: Callable[[Tensor], Tensor] | None = None
    state: WalkState | None = None


def walk_toward_function(
    start: Tensor,  # (n,)
    metric_at: Callable[[Tensor], Metric],
    directions: Sequence[Direction],
    walk: FunctionWalkOptions,
    control: WalkControl | Constraints | None = None,
    **changes: Any,
) -> Iterator[WalkPoint]:
    """Walk from ``start`` toward the functions of one or several teachers.

    Each step is eq. (7) with momentum in v, theta = rate (min_eigenvalue + mu) (g + mu I)^-1 v.
    Steps alternate between teachers, so that each uses one data set only.

    Args:
        start: First point, not yielded.
        metric_at: Function that measures the metric of the preserved functions at a point.
        directions: Functions of a point that return a distance and v, one for each teacher.
        walk: Settings of the walk.
        control: Constraints, learner of mu, running statistics and state.
        changes: Fields of :class:`WalkControl` by name that replace those of ``control``.

    Yields:
        One point per remaining step; there are ``walk.steps`` for each teacher.

    Raises:
        NumericalError: If the walk diverges: a distance is not finite, or rises beyond ``rise``.
    """
    if isinstance(control, Constraints):
        warnings.warn("give constraints as `budgets`, by name", DeprecationWarning, stacklevel=2)
        control = WalkControl(control)
    control = replace(control or WalkControl(), **changes)
    return _toward_function(start, metric_at, directions, walk, control)


def _toward_function(
    start: Tensor,  # (n,)
    metric_at: Callable[[Tensor], Metric],
    directions: Sequence[Direction],
    walk: FunctionWalkOptions,
    control: WalkControl,
) -> Iterator[WalkPoint]:
    budgets, learner, settle = control.budgets, control.learner, control.settle
    state = WalkState() if control.state is None else control.state
    w, momentum = start, torch.zeros_like(start)
    buffer = None  # Reuse the buffer of v: allocating it costs more than filling it.
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
            if step:
                del metric  # not to be held beside the next one's second moments
            metric = metric_at(w)
        rate = walk.learning_rate * (1 - turn / walk.steps)
        direction = directions[teacher]
        if isinstance(direction, Objective):
            distance, v = direction(w, buffer)
            buffer = v
        else:
            distance, v = direction(w)
        _check_distance(distance, teacher, turn, len(directions), walk.rise, state.values)
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


def _check_distance(
    distance: float,
    teacher: int,
    turn: int,
    teachers: int,
    rise: float | None,
    values: dict[str, Any],
) -> None:
    """Check the distance before a step, and all of a turn before its last step.

    Args:
        distance: Distance to the teacher of this step.
        teacher: Number of the teacher.
        turn: Number of the turn.
        teachers: Number of teachers.
        rise: Largest rise of their mean distance.
        values: Values of the walk's state, which hold the sums of the first turn and this one.

    Raises:
        NumericalError: If the walk has diverged.
    """
    if not distance < float("inf"):
        raise NumericalError(
            f"the distance to the teacher is {distance} after {turn} steps, expected a "
            "finite number; give a smaller `learning_rate` or `damping`"
        )
    if rise is None:
        return
    total = values["turn"] = distance + (values.get("turn", 0.0) if teacher else 0.0)
    if teacher < teachers - 1:
        return
    first = values.setdefault("first", total)
    limit = rise * max(first, 0.0) + _LARGE * teachers
    if total > limit:
        raise NumericalError(
            f"the mean distance to the teachers rises from {first / teachers:.3g} to "
            f"{total / teachers:.3g} in {turn} steps, expected at most {limit / teachers:.3g}; "
            "give a smaller `learning_rate`"
        )


def walk_toward_weights(
    start: Tensor,  # (n,)
    target: Tensor,  # (n,)
    metric_at: Callable[[Tensor], Metric],
    walk: WeightWalkOptions,
    correct: Callable[[Metric, Tensor], Tensor] | None = None,
    budgets: Constraints | None = None,
    state: WalkState | None = None,
) -> Iterator[WalkPoint]:
    """Walk from ``start`` to near ``target`` while preserving the metric's function.

    The step is eq. (7) with v = target - w and beta = 2 (min_eigenvalue + mu), for which it
    overshoots in no direction; mu follows from the radius. Directions that do not change the
    function move first; mu rises when these are used up.

    Args:
        start: First point, not yielded.
        target: Target of the weights.
        metric_at: Function that measures the metric at a point.
        walk: Settings of the walk.
        correct: Function of the metric and a point that returns a nearby point with less drift.
        budgets: Constraints.
        state: State of the walk, for resuming.

    Yields:
        One point per remaining step.
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
            measured = w
            del metric  # not to be held beside the next one's second moments
            metric = metric_at(w)
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
    """Walk to exactly ``target`` in equal straight steps, the limit of infinite damping.

    Args:
        start: First point, not yielded.
        target: Last point, reached bit for bit.
        metric: Metric in which the steps are measured.
        steps: Number of steps.
        state: State of the walk, for resuming.

    Yields:
        One point per remaining step.
    """
    state = WalkState() if state is None else state
    length, cost = paged.distance(target, start), metric.squared_distance(target, start)
    for i in range(state.values.get("step", 0) + 1, steps + 1):
        point = target if i == steps else paged.lerp(start, target, i / steps)
        left = length * (1 - (i - 1) / steps)
        state.values["step"] = i
        yield WalkPoint(point, length / steps, cost / steps**2, float("inf"), left)
