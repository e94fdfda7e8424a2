"""Networks -> a path between them and the network on it that does every task."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from geomerge.errors import OptionError
from geomerge.evaluation.pick import PickRule
from geomerge.io.checkpoint import Checkpoint
from geomerge.merging.fitting import fit_memory
from geomerge.merging.options import MergeOptions
from geomerge.merging.outcome import Merge
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.presets.base import Preset, choose_preset, choose_rule
from geomerge.merging.probe import probe_of
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.relaxing import relax_legs
from geomerge.merging.sides import Sides
from geomerge.merging.stages import Candidate, PickedStage, walk_plan
from geomerge.monitor.progress import Progress
from geomerge.paths.leg import Leg
from geomerge.paths.path import WeightPath

__all__ = ["Merge", "merge"]


def merge(
    networks: Sequence[Checkpoint],
    options: MergeOptions,
    *,
    folder: str | Path | None = None,
    work: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Merge:
    """Walk to a network that does what all networks do, and pick the crossover.

    Args:
        networks: Two or more; the path starts at the first (t = 0) and ends at the last (t = 1).
        options: What the walk may use and how the point is picked.
        folder: Where the path is stored; None takes a temporary folder that goes with the path.
        work: Where walks keep what they need to go on, on the disk of ``folder``: the same call
            with what an interrupted one left there goes on, and gives the same bits. None keeps
            nothing.
        on_progress: Called after each step.

    Returns:
        The path and the crossover. No network is changed.

    Raises:
        GeomergeError: If the networks do not belong together, data is missing, or the walk
            diverges.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> def untrained(seed, task):
        ...     torch.manual_seed(seed)
        ...     module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        ...     return gm.Checkpoint(module.state_dict(), {"task": task})
        >>> networks = [untrained(0, "digits@0-1"), untrained(1, "digits@2-3")]
        >>> options = gm.MergeOptions(manifold=("digits@0-1",), steps=4, damping=1e-3)
        >>> merged = gm.merge(networks, options)
        >>> merged.preset.name  # b has no sketch: eq. (7) of arXiv 2012.09605
        'paper'
        >>> sorted(merged.accuracies)
        ['a', 'b']
        >>> path = merged.path
        >>> bool(torch.equal(path.at(0), path.network.ravel(networks[0].weights)))
        True
        >>> path.at(0.5).shape == merged.w.shape
        True
    """
    sides = prepare_sides(networks, options)
    options = fit_memory(sides, options)
    preset = choose_preset(sides, options)
    rule = choose_rule(preset, options)
    if folder is not None:
        place = None if work is None else Path(work)
        if place is not None and place.resolve().is_relative_to(Path(folder).resolve()):
            raise OptionError(f"expected work outside of the path's folder {folder}, got {work}")
        return _merge(preset, rule, Path(folder), place, on_progress)
    temporary = Path(tempfile.mkdtemp(prefix="geomerge-"))
    try:
        merged = _merge(preset, rule, temporary, None, on_progress)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    weakref.finalize(merged.path, shutil.rmtree, temporary, ignore_errors=True)
    return merged


def _merge(
    preset: Preset,
    rule: PickRule,
    folder: Path,
    work: Path | None,
    on_progress: Callable[[Progress], None] | None,
) -> Merge:
    space, options = preset.space, preset.options
    if work is not None:  # what an interrupted call had put together is put together again
        WeightPath.clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(
        work or folder / "walks",
        Monitor(space, on_progress),
        options.points,
        work is not None,
        options.device,
    )
    walked: Leg | None = None
    stages = []
    for picked in walk_plan(preset, rule, recorder):
        leg = _picked_leg(picked, folder if walked is None else None)
        if walked is None:
            walked = leg
        else:
            walked.extend(leg)
        stages.append(picked)
    assert walked is not None
    _note_unmet(space, rule, picked.chosen)
    legs, crossover = _close(preset, walked, picked, recorder, folder)
    relaxed = relax_legs(space, legs, crossover, options, on_progress) if options.relax else []
    path, t = _write(space, legs, crossover, options.points, folder)
    if work is None:
        shutil.rmtree(recorder.folder)
    return Merge(
        options=options,
        sides=space,
        preset=preset,
        rule=rule,
        stages=stages,
        path=path,
        t=t,
        w=path.at(t),
        relaxed=relaxed,
    )


def _picked_leg(picked: PickedStage, folder: Path | None) -> Leg:
    """Return a copy of the chosen candidate's leg that ends at the pick, where it shall end.

    Args:
        picked: Stage.
        folder: Folder of the copy; None is beside the candidates.
    """
    chosen = picked.chosen
    leg = chosen.leg.copied(chosen.leg.folder.parent if folder is None else folder)
    if not picked.walked.preset.walks_on:
        leg.cut(chosen.step)
    leg.replace(chosen.step, picked.w)
    return leg


def _note_unmet(space: Sides, rule: PickRule, chosen: Candidate) -> None:
    if not chosen.score.feasible:
        space.notes.append("no point of the walk keeps every budget; the best of them was picked")
    elif not rule.meets(chosen.score):
        space.notes.append(f"no point of the path meets {rule.name}; the nearest to it was picked")


def _close(
    preset: Preset, walked: Leg, picked: PickedStage, recorder: Recorder, folder: Path
) -> tuple[list[Leg], tuple[Leg, int]]:
    """Walk from the ends that are still open to the crossover, keeping their functions.

    Args:
        preset: Preset that walks.
        walked: Leg of the stages.
        picked: Last stage.
        recorder: Recorder of the walks.
        folder: Folder of the path.

    Returns:
        All legs of the path, and the crossover as a leg and a step of it.
    """
    crossover = walked.weights(_last_step(walked, picked))
    closing = []
    for side in preset.open_ends:
        recording = recorder.open(f"from-{side.name}")
        walk = preset.close(side, crossover, recording.state)
        label = f"from {side.name} to the crossover"
        measure = probe_of(side, preset.options.output)
        leg = recording.follow(walk, label, side.name, side.w, measure)
        closing.append(leg.copied(folder))
    if preset.start is None:  # the walk from the middle found the crossover; it is on no path
        walked.remove()
        return closing, (closing[0], len(closing[0].steps))
    return [walked, *closing], (walked, _last_step(walked, picked))


def _last_step(walked: Leg, picked: PickedStage) -> int:
    """Return the crossover's step on the leg of all stages."""
    walks_on = picked.walked.preset.walks_on
    return picked.chosen.step if walks_on else len(walked.steps)


def _write(
    space: Sides, legs: list[Leg], crossover: tuple[Leg, int], points: int, folder: Path
) -> tuple[WeightPath, float]:
    """Write the path, and return it with the place of its crossover."""
    head = _head(space)
    ends = [
        (s.name, replace(s.checkpoint, meta={**s.checkpoint.meta, **head}))
        for s in (space.all[0], space.all[-1])
    ]
    meta = {
        "architecture": space.all[0].checkpoint.meta.get("architecture"),
        "tasks": {s.task.name: s.task.normalisation.to_json() for s in space if s.task is not None},
        **head,
    }
    t = WeightPath.write(folder, ends[0], ends[1], legs, crossover, points, meta)
    return WeightPath(folder, space.network.device), t


def _head(sides: Sides) -> dict[str, object]:
    """Return what evaluating a merged network needs to know of its outputs, where there is more."""
    if sides.head == "shared":
        return {}
    blocks = {}
    for side in sides:
        columns = side.network.columns
        if side.task is not None:
            classes = [columns.start, columns.stop] if columns.stop else None
            blocks[side.task.name] = {"outputs": classes, "offset": side.offset}
    return {"head": {"protocol": sides.head, "tasks": blocks}}
