"""What a merge would hold in memory, write to disk and take in time: estimates.

Memory and disk follow from shapes. Time is that of a step on this machine, measured for a moment,
times the steps that the plan may take; measuring metrics and accuracies comes on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from torch import Tensor

from geomerge.directions import TowardFunction, log_probabilities
from geomerge.merging.fitting import data_bytes, factor_sizes, sketch_bytes
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan
from geomerge.merging.probe import probe_of
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walks import Walker
from geomerge.metric.factor import RANK, WHOLE
from geomerge.steps import preconditioned_step
from geomerge.tasks import Inputs
from geomerge.walk import FunctionWalk
from geomerge.walk_state import WalkState

__all__ = ["estimate_memory", "estimate_time", "steps_of"]

_WALK_COPIES = 7  # of the weights, beside metric and activations: benchmarks/memory.py
_NUMBER = 4  # bytes
_DAMPING, _RATE = 1e-3, 0.1  # of the steps timed; their time does not depend on either
_SECONDS = 0.5
_MOST = 50


def steps_of(plan: Plan, sides: Sides, options: MergeOptions) -> dict[str, int]:
    """Return how many steps each part of a merge takes at most, by a name for people."""
    walker = Walker(sides, options)
    found: dict[str, int] = {}
    for stage in plan.stages:
        goal = " and ".join(side.name for side in stage.learned)
        tried = len(stage.candidates)
        if plan.preset == "paper":
            start, target = stage.kept[0], stage.learned[0].w
            steps = walker.toward(start, target, stage.candidates[0], WalkState())[1]
        else:
            steps = (options.steps or FunctionWalk.steps) * len(stage.learned)
        dampings = f", {tried} dampings" if tried > 1 else ""
        found[f"toward {goal}{dampings}"] = steps * tried
    if plan.preset != "paper":
        for side in (sides.all[0], sides.all[-1]):
            if side is not plan.start:
                found[f"from {side.name} to the crossover"] = walker.reach(
                    side, side.w, WalkState()
                )[1]
    return found


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
    if options.metric != "kronecker":  # the others keep activations or few gradients
        return 0
    stored = sketch_bytes(side for stage in plan.stages for side in stage.kept)
    measured = [side for side in sides if side.manifold is not None]
    return stored + max((_factor_bytes(side) for side in measured), default=0)


def _factor_bytes(side: Side) -> int:
    """Return the bytes of a Kronecker metric's eigenvectors, measured on a side's inputs."""
    return _NUMBER * sum(d * (d if d <= WHOLE else RANK) for d in factor_sizes(side))


def estimate_time(plan: Plan, sides: Sides, options: MergeOptions) -> dict[str, Any]:
    """Measure a step for a moment and multiply.

    Returns:
        ``seconds_per_step``, ``steps`` by part of the merge, ``seconds`` at most of all steps.
    """
    steps = steps_of(plan, sides, options)
    walked = plan.walked_on[0]
    one = _step_seconds(walked, sides, options.output)
    return {"seconds_per_step": one, "steps": steps, "seconds": one * sum(steps.values())}


def _step_seconds(side: Side, sides: Sides, output: str) -> float:
    """Return the time of a gradient, of a step in a sketch if there is one, and of its measure."""
    assert side.manifold is not None
    raw = side.manifold.raw[: FunctionWalk.batch]
    few = Inputs(raw, side.manifold.normalisation, side.manifold.device)
    targets = log_probabilities(side.network, side.w, few)
    direction = TowardFunction(side.network, targets, few, FunctionWalk.batch, 0)
    metric = next((s.sketch.metric for s in sides if s.sketch is not None), None)
    probe = probe_of(side, output)
    assert probe is not None

    def step() -> Tensor:
        _, v = direction(side.w)
        tangent = v if metric is None else preconditioned_step(metric, v, _DAMPING, _RATE)[0]
        probe(side.w, side.w + tangent)
        return tangent

    return _timed(step)


def _timed(step: Callable[[], Tensor]) -> float:
    """Return the median of several times; the first step, which also sets up, counts if alone."""
    taken: list[float] = []
    while len(taken) <= _MOST and sum(taken) < _SECONDS:
        began = time.perf_counter()
        float(step().sum())  # waits for an accelerator
        taken.append(time.perf_counter() - began)
    return median(taken[1:] or taken)
