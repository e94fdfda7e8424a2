"""How long a merge takes: its own parts, each run for a moment here and now.

Walks take their first steps, with all that is recorded after a step; measurements are made once.
The rest is counting. Budgets that bind only later, and relaxing, come on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from geomerge.crossover import COARSE, accuracy
from geomerge.errors import NumericalError
from geomerge.merging.joint import NotTrainableError, joint_samples, train_jointly
from geomerge.merging.keeping import kept_metric, stage_budgets
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan, Stage, plan_merge
from geomerge.merging.probe import Probe, probe_of
from geomerge.merging.scoring import Scorer
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walks import JOINT_REFRESH, Walk, Walker
from geomerge.metric import KroneckerMetric, Metric
from geomerge.recording import record_leg
from geomerge.walk import WalkPoint, WeightWalk
from geomerge.walk_state import WalkState

__all__ = ["estimate_time"]

_SECONDS = 0.5  # for which a walk is run
_LEAST, _MOST = 3, 40  # of its steps
_STATES = 1.05  # writing a walk's state takes a twentieth of its time
_CLOSED = 0.75  # of the steps that a leg to the crossover may take are taken, about
_SCORED = COARSE + 7  # points that a pick measures
_CURVE = 34  # points of the path that a report measures
_CERTIFIED = 8  # passes of the selection splits for the certificate
_TRAINED = (1280, 7680)  # examples for which joint training is run
_PLANE = 225 * 200  # inputs of each task for the picture of the plane
_REPORT = 7.0  # seconds, of pictures and pages; networks hardly matter


def estimate_time(plan: Plan, sides: Sides, options: MergeOptions) -> dict[str, Any]:
    """Run every part of a merge for a moment and multiply.

    Args:
        plan: What the merge will do.
        sides: The networks, as the merge prepares them.
        options: Of the merge.

    Returns:
        ``"steps"`` of each walk at most, ``"parts"`` in seconds, ``"seconds"``, their sum.
    """
    steps: dict[str, int] = {}
    walks = _stages(plan, sides, options, steps) + _closing(plan, sides, options, steps)
    scorer, first = Scorer(sides.all, options.output), sides.all[0].w
    score = _seconds(lambda: scorer(first))
    test = _seconds(lambda: [_tested(side) for side in sides])
    picks = sum(len(stage.candidates) for stage in plan.stages)
    beside = _training(sides, options)
    for other, how in _walked_beside(plan, sides, options):
        beside += _stages(other, sides, how, {})
        picks += sum(len(stage.candidates) for stage in other.stages)
    rows = len(sides.all) + 4  # the networks, line, Euclidean walk, joint training, crossover
    scores = _SCORED * (picks + 1) + _CURVE + _CERTIFIED + rows
    known = [side.task.select for side in sides if side.task is not None]
    passed = sum(len(select.labels) for select in known)
    scores_of_plane = _PLANE * len(known) / passed if passed else 0.0
    parts = {
        "walks": walks,
        "rows beside": beside,
        "measurements": (scores + scores_of_plane) * score + (rows + 2) * test,
        "report": _REPORT,
    }
    return {"steps": steps, "parts": parts, "seconds": sum(parts.values())}


def _walked_beside(
    plan: Plan, sides: Sides, options: MergeOptions
) -> Iterator[tuple[Plan, MergeOptions]]:
    """Yield the walks that stand beside a merge: in the Euclidean metric, and not learned."""
    if plan.preset != "paper" and options.metric != "euclidean":
        stages = tuple(replace(stage, candidates=(0.0,)) for stage in plan.stages)
        plain = replace(options, metric="euclidean", damping=None, learn=None, budget=())
        yield replace(plan, stages=stages), replace(plain, learning_rate=None)
    if options.learn is not None:
        fixed = replace(options, learn=None, damping=None)
        yield plan_merge(sides, fixed), fixed


def _stages(plan: Plan, sides: Sides, options: MergeOptions, steps: dict[str, int]) -> float:
    """Return the seconds of the walks of all stages, and put down how many steps they take."""
    walker, start, total = Walker(sides, options), plan.begin(sides), 0.0
    for stage in plan.stages:
        began = time.perf_counter()
        metric = kept_metric(walker, stage, start, options) if plan.preset == "sketch" else None
        total += time.perf_counter() - began
        _, count = _walk(plan, stage, sides, start, metric, walker, options)
        probes = [probe_of(side, options.output) for side in stage.kept]
        first, step = _run(
            partial(_walk, plan, stage, sides, start, metric, walker, options),
            start,
            probes[0] if len(probes) == 1 else None,
            options,
        )
        times = 1
        if plan.preset == "joint":
            turns = options.steps or max(JOINT_REFRESH) + 1
            times = sum(turn < turns for turn in JOINT_REFRESH)
        elif plan.preset == "paper":
            times = count // WeightWalk.refresh
        tried = len(stage.candidates)
        total += tried * (times * first + count * step)
        goal = " and ".join(side.name for side in stage.learned)
        steps[f"toward {goal}" + (f", {tried} dampings" if tried > 1 else "")] = count * tried
    return total


def _walk(
    plan: Plan,
    stage: Stage,
    sides: Sides,
    start: Tensor,  # (n,)
    metric: Metric | None,
    walker: Walker,
    options: MergeOptions,
) -> Walk:
    """Return the first candidate's walk of a stage."""
    damping, state = stage.candidates[0], WalkState()
    budgets = stage_budgets(sides, plan, stage, start, metric, walker, options, state)
    if metric is not None:
        used = metric.sharpened(damping) if isinstance(metric, KroneckerMetric) else metric
        return walker.learn(start, used, stage.learned[0], damping, state, 1.0, budgets)
    if plan.preset == "joint":
        return walker.learn_all(start, damping, state, 1.0, budgets)
    return walker.toward(stage.kept[0], plan.goal.w, damping, state, budgets)


def _closing(plan: Plan, sides: Sides, options: MergeOptions, steps: dict[str, int]) -> float:
    """Return the seconds of the legs from the ends of the path to the crossover."""
    if plan.preset == "paper":
        return 0.0
    walker, middle, total = Walker(sides, options), sides.middle(), 0.0
    for side in (sides.all[0], sides.all[-1]):
        if side is plan.start:
            continue
        count = walker.reach(side, middle, WalkState())[1]
        steps[f"from {side.name} to the crossover"] = count
        first, step = _run(
            partial(walker.reach, side, middle, WalkState()),
            side.w,
            probe_of(side, options.output),
            options,
        )
        total += _CLOSED * (count // WeightWalk.refresh * first + count * step)
    return total


def _run(
    walk: Callable[[], Walk],
    start: Tensor,  # (n,)
    measure: Probe | None,
    options: MergeOptions,
) -> tuple[float, float]:
    """Return the seconds of what a walk does before its first step, and those of a step."""
    began = time.perf_counter()
    stamps: list[float] = []

    def few() -> Iterator[WalkPoint]:
        for number, point in enumerate(walk()[0], 1):
            yield point
            stamps.append(time.perf_counter())
            over = stamps[-1] - stamps[0] > _SECONDS and number >= _LEAST
            if over or number >= _MOST:
                return

    with TemporaryDirectory() as folder:
        record_leg(Path(folder), "timed", start, few(), options.points, measure)
    if len(stamps) < 2:  # there is nowhere to go
        return 0.0, 0.0
    step = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    return max(stamps[0] - began - step, 0.0), _STATES * step


def _training(sides: Sides, options: MergeOptions) -> float:
    """Return the seconds of the joint training that stands beside a merge."""
    found: list[tuple[float, int]] = []
    try:
        for samples in _TRAINED:  # two, for what is made before the first example counts once
            began = time.perf_counter()
            _, taken = train_jointly(sides, samples, options.seed)
            found.append((time.perf_counter() - began, taken))
    except (NotTrainableError, NumericalError):
        return 0.0
    (one, few), (other, many) = found
    return one + (joint_samples(sides, options) - few) * max(other - one, 0.0) / (many - few)


def _tested(side: Side) -> float | None:
    return None if side.task is None else accuracy(side.network, side.w, side.task.test)


def _seconds(run: Callable[[], object]) -> float:
    """Return the time of a second run: the first also sets up."""
    run()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
