"""What a merge would hold in memory and write to disk, from shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.search import COARSE
from geomerge.merging.compare import walks_beside
from geomerge.merging.curve import POINTS
from geomerge.merging.fitting import data_bytes, network_size, sketch_bytes
from geomerge.merging.joint import NotTrainableError, joint_samples, train_jointly
from geomerge.merging.options import MergeOptions
from geomerge.merging.plane import EXAMPLES, grid_points
from geomerge.merging.presets.base import Preset
from geomerge.merging.probe import Probe, probe_of
from geomerge.merging.scoring import Scorer
from geomerge.merging.sides import Side, Sides
from geomerge.merging.stages import CandidateWalks
from geomerge.merging.walker import Walk
from geomerge.metrics import METRICS
from geomerge.paths.leg import record_leg
from geomerge.walks.state import WalkState
from geomerge.walks.walk import WalkPoint, WeightWalkOptions

__all__ = ["estimate_memory", "estimate_time"]

_WALK_COPIES = 7  # of the weights, beside metric and activations: benchmarks/memory.py
_NUMBER = 4  # bytes


def estimate_memory(preset: Preset) -> dict[str, int]:
    """Return bytes by what they are for; activations of a batch come on top.

    Args:
        preset: Preset of the merge.
    """
    sides, options = preset.space, preset.options
    weights = _NUMBER * sides.network.n
    tried = max(len(stage.candidates) for stage in preset.stages)
    return {
        "weights": 2 * weights * len(sides.all),  # as they came, and as vectors
        "data": data_bytes(sides),
        "metric": _metric_bytes(preset),
        "walk": _WALK_COPIES * weights,
        "path_on_disk": (options.points + 2) * weights,
        "disk_while_walking": (2 * options.points + (tried - 1) * options.points + 2) * weights,
    }


def _metric_bytes(preset: Preset) -> int:
    kind = METRICS[preset.options.metric]
    if not (kind.needs_inputs and kind.data_free):  # it holds activations or nothing
        return 0
    measured = [network_size(side) for side in preset.space if side.manifold is not None]
    stored = sketch_bytes(side for stage in preset.stages for side in stage.kept)
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


def estimate_time(preset: Preset) -> dict[str, Any]:
    """Run every part of a merge for a moment and multiply.

    Args:
        preset: Preset of the merge, for the networks as the merge prepares them.

    Returns:
        ``"steps"`` of each walk at most, ``"parts"`` in seconds, ``"seconds"``, their sum.
    """
    sides, options = preset.space, preset.options
    steps: dict[str, int] = {}
    walks = _stages(preset, steps) + _closing(preset, steps)
    scorer, first = Scorer(sides.all, options.output), sides.all[0].w
    score = _seconds(lambda: scorer(first))
    test = _seconds(lambda: [_tested(side) for side in sides])
    picks = sum(len(stage.candidates) for stage in preset.stages)
    beside = _training(sides, options)
    for other in walks_beside(preset):
        beside += _stages(other.preset, {})
        picks += sum(len(stage.candidates) for stage in other.preset.stages)
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


def _stages(preset: Preset, steps: dict[str, int]) -> float:
    """Return the seconds of the walks of all stages, and put down how many steps they take."""
    start, total = preset.begin(), 0.0
    for stage in preset.stages:
        began = time.perf_counter()
        walks = CandidateWalks(preset, stage, start)
        total += time.perf_counter() - began
        damping, tried = stage.candidates[0], len(stage.candidates)

        def walk(walks: CandidateWalks = walks, damping: float = damping) -> Walk:
            return walks.walk(damping, WalkState())[0]

        count = walk().steps
        first, step = _run(walk, start, walks.measure, preset.options.points)
        total += tried * (preset.measurements(count) * first + count * step)
        goal = " and ".join(side.name for side in stage.toward)
        steps[f"toward {goal}" + (f", {tried} dampings" if tried > 1 else "")] = count * tried
    return total


def _closing(preset: Preset, steps: dict[str, int]) -> float:
    """Return the seconds of the legs from the ends of the path to the crossover."""
    options, middle, total = preset.options, preset.space.middle(), 0.0
    for side in preset.open_ends:

        def walk(side: Side = side) -> Walk:
            return preset.close(side, middle, WalkState())

        count = walk().steps
        steps[f"from {side.name} to the crossover"] = count
        first, step = _run(walk, side.w, probe_of(side, options.output), options.points)
        total += _CLOSED * (count // WeightWalkOptions.refresh * first + count * step)
    return total


def _run(
    walk: Callable[[], Walk],
    start: Tensor,  # (n,)
    measure: Probe | None,
    points: int,
) -> tuple[float, float]:
    """Return the seconds of what a walk does before its first step, and those of a step."""
    began = time.perf_counter()
    stamps: list[float] = []

    def few() -> Iterator[WalkPoint]:
        for number, point in enumerate(walk().points, 1):
            yield point
            stamps.append(time.perf_counter())
            over = stamps[-1] - stamps[0] > _SECONDS and number >= _LEAST
            if over or number >= _MOST:
                return

    with TemporaryDirectory() as folder:
        record_leg(Path(folder), "timed", start, few(), points, measure)
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
