"""Cost estimates of a merge: memory and disk from shapes, time from a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from geomerge.errors import NumericalError
from geomerge.evaluation.measures import score
from geomerge.evaluation.search import COARSE, FINAL
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.merging.beside import trains_beside, walks_beside
from geomerge.merging.curve import POINTS, examples_drawn
from geomerge.merging.joint_training import NotTrainableError, joint_samples, train_jointly
from geomerge.merging.measuring import inputs_of
from geomerge.merging.pace import pace_of, training_pace
from geomerge.merging.plane import EXAMPLES, grid_points
from geomerge.merging.prepare import rough_share
from geomerge.merging.presets.base import Preset, Stage
from geomerge.merging.resident import base_bytes
from geomerge.merging.sizes import data_bytes, network_size, pass_bytes, sketch_bytes
from geomerge.merging.stages import CandidateWalks
from geomerge.merging.timing import LEAST, run_for_a_moment
from geomerge.merging.walker import Walk
from geomerge.metrics.registry import MeasuringPace, NetworkSize
from geomerge.walks.state import WalkState
from geomerge.walks.walk import FunctionWalkOptions

__all__ = ["disk_bytes", "estimate_memory", "estimate_time", "temporary_bytes"]

_WALK_COPIES = 7  # copies of the weights, besides metric and activations: benchmarks/memory.py
_NUMBER = 4  # bytes


def estimate_memory(preset: Preset) -> dict[str, int]:
    """Return bytes by their use; all but those on disk may be held at once.

    Args:
        preset: Preset of the merge.
    """
    space = preset.space
    weights = _NUMBER * space.network.n
    path, walking = disk_bytes(preset)
    walked = [expert for expert in space if expert.inputs is not None]
    batch = min([FunctionWalkOptions.batch, *(len(inputs_of(expert)) for expert in walked)])
    sizes = [network_size(expert) for expert in walked]
    loaded = {
        "weights": 2 * weights * len(space),  # as they came, and as vectors
        "data": data_bytes(space),
    }
    found = {
        "libraries": max(0, base_bytes() - sum(loaded.values())),
        **loaded,
        "metric": _metric_bytes(preset, sizes),
        "measuring": preset.kind.measuring_bytes(sizes),
        "activations": min(space.network.max_batch or batch, batch) * pass_bytes(walked),
        "walk": _WALK_COPIES * weights,
        "path_on_disk": path,
        "disk_while_walking": walking,
    }
    in_files = sum(found[part] for part in ("weights", "metric", "walk"))
    if not walked and _uses_files(preset) and paged.has_room(in_files):  # benchmarks/bert_base.py
        # A network while it is read or written, and a point; all else lies in files.
        found |= {"weights": weights, "metric": 0, "walk": weights}
    return found


def disk_bytes(preset: Preset) -> tuple[int, int]:
    """Return the bytes on disk of a finished path, and at most during the walks.

    Args:
        preset: Preset of the merge.
    """
    points, weights = preset.prepared.points, _NUMBER * preset.space.network.n
    tried = max(len(stage.candidates) for stage in preset.stages)
    return (points + 2) * weights, (2 * points + (tried - 1) * points + 2) * weights


def temporary_bytes(preset: Preset) -> int:
    """Return the bytes at most of the temporary files that a merge of loaded networks adds.

    Args:
        preset: Preset of the merge.
    """
    return _WALK_COPIES * _NUMBER * preset.space.network.n if _uses_files(preset) else 0


def _uses_files(preset: Preset) -> bool:
    """Return whether vectors of weights lie in temporary files, where there is room."""
    network = preset.space.network
    return network.device.type == "cpu" and paged.in_file(_NUMBER * network.n)


def _metric_bytes(preset: Preset, sizes: Sequence[NetworkSize]) -> int:
    kind = preset.kind
    if not (kind.needs_inputs and kind.data_free):  # it holds activations or nothing
        return 0
    stored = sketch_bytes(expert for stage in preset.stages for expert in stage.kept)
    return stored + kind.held_bytes(sizes)


_TRIAL = 10.0  # seconds that running parts for a moment may take
_MEASURED = 4  # passes that measuring a metric takes, about
_DECOMPOSED = 2e-7  # seconds per weight of decompositions, about
_SCORED = COARSE + 7  # points that a pick measures
_CURVE = POINTS + 1  # points of the path that a report measures
_CERTIFIED = 8  # passes of the selection splits for the certificate
_TRAINED = (1280, 7680)  # examples for which joint training is run
_REPORT = 3.0  # seconds of pictures and pages, for all networks: benchmarks/estimates.py


def estimate_time(preset: Preset) -> dict[str, Any]:
    """Estimate the seconds of a merge, in ten seconds of work at most.

    Every part of a merge of small networks is run for a moment. Of a larger one, passes of a few
    inputs and two decompositions are timed, and multiplied by their numbers in the merge.

    Args:
        preset: Preset of the merge, for the networks as the merge prepares them.

    Returns:
        ``"steps"`` of each walk at most, ``"parts"`` in seconds, ``"seconds"``, their sum,
        ``"assumed"``, the basis of the numbers, and ``"one_by_one"``, seconds per input by the
        names of the weights for which the network is differentiated input by input.
    """
    steps: dict[str, int] = {}
    training = training_pace(preset.space)
    picks = sum(len(stage.candidates) for stage in preset.stages)
    trains = trains_beside(preset)
    beside = [other.preset for other in walks_beside(preset)] if trains else []
    picks += sum(len(stage.candidates) for other in beside for stage in other.stages)
    slow: dict[str, float] = {}
    if _trial(preset, training) <= _TRIAL:
        walks = _stages(preset, steps) + _closing(preset, steps)
        scorer, first = preset.prepared.scorer(preset.space.experts), preset.space.experts[0]
        score = _seconds(lambda: scorer(first.weights))
        test = _seconds(lambda: [_tested(expert) for expert in preset.space])
        others = _training(preset) if trains else 0.0
        others += sum(_stages(other, {}) for other in beside)
        assumed = "each part was run for a moment"
        drawn = _drawn(preset)
        passed = sum(len(e.task.select.labels) for e in preset.space if e.task is not None)
        plane = drawn / passed * score if passed else 0.0
    else:
        pace = pace_of(preset, training)
        plane = _drawn(preset) * pace.forward
        _count(preset, steps)
        walks = sum(pace.stage(preset, stage) for stage in preset.stages) + pace.closing(preset)
        score, test = pace.score(preset), pace.tested(preset)
        plain = replace(pace, measuring=MeasuringPace(0.0, 0.0))
        others = pace.joint_training(preset) if trains else 0.0
        others += sum(
            (plain if other.kind.isotropic else pace).stage(other, stage)
            for other in beside for stage in other.stages
        )  # fmt: skip
        own = pace.measuring
        slow = dict.fromkeys(own.one_by_one, own.one_by_one_seconds)
        assumed = (
            f"extrapolated from passes of a few inputs: {pace.training:.2g} s per input of a "
            f"walk's step, {own.each:.2g} s per input of the metric and {own.besides:.2g} s for "
            "each of its measurements"
        )
    # The networks, line and crossover; Euclidean walk and joint training.
    rows = len(preset.space) + 2 + 2 * trains
    share = rough_share(preset.space.experts)
    pick = _SCORED if share == 1 else share * _SCORED + FINAL
    curve = _CURVE * _drawn_share(preset)
    scores = pick * (picks + 1) + curve + _CERTIFIED + rows
    parts = {
        "walks": walks,
        "rows beside": others,
        "measurements": scores * score + plane + (rows + 2) * test,
        "report": _REPORT,
    }
    return {
        "steps": steps,
        "parts": parts,
        "seconds": sum(parts.values()),
        "assumed": assumed,
        "one_by_one": slow,
    }


def _drawn_share(preset: Preset) -> float:
    """Return the share of the selection splits on which a curve is measured."""
    few = examples_drawn(preset.space.network)
    sizes = [len(e.task.select.labels) for e in preset.space if e.task is not None]
    return 1.0 if few is None or not sizes else sum(min(few, n) for n in sizes) / sum(sizes)


def _drawn(preset: Preset) -> int:
    """Return the number of passes of one input for the plane of a report."""
    sizes = [len(e.task.select.labels) for e in preset.space if e.task is not None]
    return grid_points(preset.space) ** 2 * min([EXAMPLES, *sizes]) * len(sizes)


def _trial(preset: Preset, training: float) -> float:
    """Return the approximate seconds of running every part of a merge for a moment."""
    space, batch = preset.space, FunctionWalkOptions.batch
    counts = [len(e.inputs) for e in space if e.inputs is not None]
    measured = sum(min(preset.kind.inputs, count) for count in counts)
    tasks = [expert.task for expert in space if expert.task is not None]
    scored = sum(len(task.select.labels) + len(task.test.labels) for task in tasks)
    walks = 2 * len(preset.stages) + len(preset.open_ends)
    passes = (_MEASURED * measured + LEAST * batch) * walks + 2 * scored
    passes += trains_beside(preset) * sum(_TRAINED)
    return passes * training + walks * space.network.n * _DECOMPOSED


def _count(preset: Preset, steps: dict[str, int]) -> None:
    """Record the largest numbers of steps of the walks."""
    for stage in preset.stages:
        tried, count = len(stage.candidates), preset.steps_of(stage)
        steps[_goal(stage)] = count * tried
    for expert in preset.open_ends:
        steps[f"from {expert.name} to the crossover"] = preset.close_steps


def _goal(stage: Stage) -> str:
    tried = len(stage.candidates)
    goal = " and ".join(expert.name for expert in stage.toward)
    return f"toward {goal}" + (f", {tried} dampings" if tried > 1 else "")


def _stages(preset: Preset, steps: dict[str, int]) -> float:
    """Return the seconds of the walks of all stages, and record their numbers of steps."""
    start, total = next(preset.starts()).weights, 0.0
    for stage in preset.stages:
        began = time.perf_counter()
        walks = CandidateWalks(preset, stage, start)
        total += time.perf_counter() - began
        damping, tried = stage.candidates[0], len(stage.candidates)

        def walk(walks: CandidateWalks = walks, damping: float = damping) -> Walk:
            return walks.walk(damping, WalkState())[0]

        count = walk().steps
        timed = run_for_a_moment(walk, start, walks.measure, preset.prepared.points)
        times = preset.measurements(count)
        total += timed.setup + tried * (times * timed.first + count * timed.step)
        steps[_goal(stage)] = count * tried
    return total


def _closing(preset: Preset, steps: dict[str, int]) -> float:
    """Return the seconds of the legs from the ends of the path to the crossover."""
    middle, total = preset.space.middle(), 0.0
    points = preset.prepared.points
    for expert in preset.open_ends:

        def walk(expert: Expert = expert) -> Walk:
            return preset.close(expert, middle, WalkState())

        count = walk().steps
        steps[f"from {expert.name} to the crossover"] = count
        timed = run_for_a_moment(walk, expert.weights, preset.prepared.probe(expert), points)
        likely = preset.closing_steps(expert, middle, timed.fall)
        times = preset.closing_measurements(expert, likely)
        total += timed.setup + times * timed.first + likely * timed.step
    return total


def _training(preset: Preset) -> float:
    """Return the seconds of the joint training that a merge is compared with."""
    space, options = preset.space, preset.options
    found: list[tuple[float, int]] = []
    try:
        for samples in _TRAINED:  # two, for what is made before the first example counts once
            began = time.perf_counter()
            _, taken = train_jointly(space, samples, options.machine.seed)
            found.append((time.perf_counter() - began, taken))
    except (NotTrainableError, NumericalError):
        return 0.0
    (one, few), (other, many) = found
    left = joint_samples(space, options.walk.steps) - few
    return one + left * max(other - one, 0.0) / (many - few)


def _tested(expert: Expert) -> float | None:
    return None if expert.task is None else score(expert.network, expert.weights, expert.task.test)


def _seconds(run: Callable[[], object]) -> float:
    """Return the time of a second run: the first also sets up."""
    run()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
