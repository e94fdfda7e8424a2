"""What a merge would hold in memory and write to disk, from shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import COARSE
from geomerge.merging.candidates import candidate_walk, stage_probe
from geomerge.merging.compare import walks_beside
from geomerge.merging.curve import POINTS
from geomerge.merging.fitting import data_bytes, network_size, sketch_bytes
from geomerge.merging.joint import NotTrainableError, joint_samples, train_jointly
from geomerge.merging.keeping import kept_metric, stage_budgets
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan, Stage
from geomerge.merging.plane import EXAMPLES, grid_points
from geomerge.merging.probe import Probe, probe_of
from geomerge.merging.scoring import Scorer
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walks import JOINT_REFRESH, Walk, Walker
from geomerge.metrics import METRICS, Metric
from geomerge.paths.leg import record_leg
from geomerge.walks.state import WalkState
from geomerge.walks.walk import WalkPoint, WeightWalkOptions

__all__ = ["estimate_memory", "estimate_time"]

_WALK_COPIES = 7  # of the weights, beside metric and activations: benchmarks/memory.py
_NUMBER = 4  # bytes


def estimate_memory(plan: Plan, sides: Sides, options: MergeOptions) -> dict[str, int]:
    """Return bytes by what they are for; activations of a batch come on top.

    Args:
        plan: What the merge will do.
        sides: The networks.
        options: How many points the path keeps.
    """
    weights = _NUMBER * sides.network.n
    tried = max(len(stage.candidates) for stage in plan.stages)
    return {
        "weights": 2 * weights * len(sides.all),  # as they came, and as vectors
        "data": data_bytes(sides),
        "metric": _metric_bytes(plan, sides, options),
        "walk": _WALK_COPIES * weights,
        "path_on_disk": (options.points + 2) * weights,
        "disk_while_walking": (2 * options.points + (tried - 1) * options.points + 2) * weights,
    }


def _metric_bytes(plan: Plan, sides: Sides, options: MergeOptions) -> int:
    kind = METRICS[options.metric]
    if not (kind.needs_inputs and kind.data_free):  # it holds activations or nothing
        return 0
    measured = [network_size(side) for side in sides if side.manifold is not None]
    stored = sketch_bytes(side for stage in plan.stages for side in stage.kept)
    return stored + kind.held_bytes(measured)


_SECONDS = 0.5  # for which a walk is run
_LEAST, _MOST = 3, 40  # of its steps
_STATES = 1.05  # writing a walk's state takes a twentieth of its time
_CLOSED = 0.75  # of the steps that a leg to the crossover may take are taken, about
_SCORED = COARSE + 7  # points that a pick measures
_CURVE = POINTS + 1  # points of the path that a report measures
_CERTIFIED = 8  # passes of the selection splits for the certificate
_TRAINED = (1280, 7680)  # examples for which joint training is run
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
    for other in walks_beside(plan, sides, options):
        beside += _stages(other.plan, sides, other.options, {})
        picks += sum(len(stage.candidates) for stage in other.plan.stages)
    rows = len(sides.all) + 4  # the networks, line, Euclidean walk, joint training, crossover
    scores = _SCORED * (picks + 1) + _CURVE + _CERTIFIED + rows
    known = [side.task.select for side in sides if side.task is not None]
    passed = sum(len(select.labels) for select in known)
    drawn = grid_points(sides) ** 2 * EXAMPLES * len(known)
    scores_of_plane = drawn / passed if passed else 0.0
    parts = {
        "walks": walks,
        "rows beside": beside,
        "measurements": (scores + scores_of_plane) * score + (rows + 2) * test,
        "report": _REPORT,
    }
    return {"steps": steps, "parts": parts, "seconds": sum(parts.values())}


def _stages(plan: Plan, sides: Sides, options: MergeOptions, steps: dict[str, int]) -> float:
    """Return the seconds of the walks of all stages, and put down how many steps they take."""
    walker, start, total = Walker(sides, options), plan.begin(sides), 0.0
    for stage in plan.stages:
        began = time.perf_counter()
        metric = kept_metric(walker, stage, start, options) if plan.preset == "sketch" else None
        total += time.perf_counter() - began
        measure = stage_probe(stage, options.output)

        def walk(
            stage: Stage = stage, metric: Metric | None = metric, measure: Probe | None = measure
        ) -> Walk:
            damping, state = stage.candidates[0], WalkState()
            budgets = stage_budgets(sides, plan, stage, start, metric, walker, options, state)
            return candidate_walk(
                plan, stage, start, metric, measure, walker, damping, state, 1.0, budgets
            )

        _, count = walk()
        first, step = _run(walk, start, measure, options)
        times = 1
        if plan.preset == "joint":
            turns = options.steps or max(JOINT_REFRESH) + 1
            times = sum(turn < turns for turn in JOINT_REFRESH)
        elif plan.preset == "paper":
            times = count // WeightWalkOptions.refresh
        tried = len(stage.candidates)
        total += tried * (times * first + count * step)
        goal = " and ".join(side.name for side in stage.learned)
        steps[f"toward {goal}" + (f", {tried} dampings" if tried > 1 else "")] = count * tried
    return total


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
        total += _CLOSED * (count // WeightWalkOptions.refresh * first + count * step)
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
