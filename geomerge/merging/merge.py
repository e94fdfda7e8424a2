"""Merge of networks: a path between them, and the picked network for all tasks."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geomerge.errors import OptionError, Problems
from geomerge.evaluation.pick import PickRule
from geomerge.expert_like import ExpertLike, as_expert
from geomerge.io import paged
from geomerge.loading import given_experts
from geomerge.merging.choice import plan_merge
from geomerge.merging.cost import disk_bytes, temporary_bytes
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.base import Preset
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.relax import relax_legs
from geomerge.merging.result import MergeResult
from geomerge.merging.stages import Candidate, PickedStage, walk_plan
from geomerge.monitor.progress import Progress
from geomerge.options import replace_options
from geomerge.paths.leg import Leg
from geomerge.paths.path import WeightPath
from geomerge.processes import agree, first_text, together, wait, writes

__all__ = ["merge"]


def merge(
    experts: Sequence[ExpertLike],
    options: MergeOptions | None = None,
    *,
    base: ExpertLike | None = None,
    folder: str | Path | None = None,
    work: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> MergeResult:
    """Walk to a network for all tasks, and pick the crossover.

    Args:
        experts: Two or more experts, modules or files of networks; the path starts at the first
            (t = 0) and ends at the last (t = 1). They are called a, b, c, ... in order.
        options: Options of the merge.
        base: Common ancestor of all, that they were fine-tuned from; None if there is none.
        folder: Folder of the path. None takes a temporary folder that goes with the path.
        work: Folder of the states of walks, for resuming, on the disk of ``folder``: the
            same call with what an interrupted one left there goes on, and gives the same bits.
            None stores nothing.
        progress: Function called after each step.
        changes: Options by name that replace those of ``options``; and the data of networks that
            are no experts, fields of :class:`~geomerge.expert_options.DataOptions`: ``inputs``
            (tasks by name or as objects, one for each network), ``arch``, ``sketch``, ....

    Returns:
        The merged network, with the path and the crossover. No network is changed.

    Raises:
        GeomergeError: If the networks do not belong together, data is missing, or a walk
            diverges in its first step.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> def untrained(seed):
        ...     torch.manual_seed(seed)
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        >>> a = gm.Expert.from_module(untrained(0), "digits@0-1")
        >>> b = gm.Expert.from_module(untrained(1), "digits@2-3", inputs=False)
        >>> merged = gm.merge([a, b], steps=4, damping=1e-3)
        >>> merged.preset.name  # b has neither inputs nor a sketch
        'surrogate'
        >>> sorted(merged.accuracies)
        ['a', 'b']
        >>> bool(torch.equal(merged.path.at(0), a.weights))
        True
        >>> merged.path.at(0.5).shape == merged.w.shape
        True
    """
    with together():
        given = given_experts(experts, changes)
        options = replace_options(options or MergeOptions(), **changes)
        ancestor = None if base is None else as_expert(base, among=given)
        place = None if work is None or folder is None else Path(work)
        if place is not None and place.resolve().is_relative_to(Path(folder or "").resolve()):
            raise OptionError(f"expected `work` outside of the path's folder {folder}, got {work}")
        planned = plan_merge(given, options, Problems(strict=True), ancestor, place)
        assert planned is not None, "strict problems are raised"
        preset, rule = planned
        del experts, given, base, ancestor  # the space has copies of their weights
        paged.give_back()
        agree("networks or options", f"{options}", [e.weights for e in preset.space])
        progress = progress if writes() else None
        if folder is not None:
            return _merge(preset, rule, Path(folder), place, progress)
        return _merge_for_now(preset, rule, progress)


def _merge_for_now(
    preset: Preset, rule: PickRule, progress: Callable[[Progress], None] | None
) -> MergeResult:
    """Merge in a temporary folder, which goes with the path."""
    temporary = Path(first_text(tempfile.mkdtemp(prefix="geomerge-") if writes() else ""))
    try:
        merged = _merge(preset, rule, temporary, None, progress)
    except BaseException:
        if writes():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if writes():
        weakref.finalize(merged.path, shutil.rmtree, temporary, ignore_errors=True)
    return merged


def _merge(
    preset: Preset,
    rule: PickRule,
    folder: Path,
    work: Path | None,
    progress: Callable[[Progress], None] | None,
) -> MergeResult:
    prepared, points = preset.prepared, preset.prepared.points
    if work is not None:  # the path of an interrupted call is written again
        WeightPath.clear(folder)
    if writes():
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_full_disk(preset, folder, work)
    monitor = Monitor(preset.space, progress)
    recorder = Recorder(work or folder / "walks", monitor, points, work is not None)
    walked: Leg | None = None
    stages = []
    for picked in walk_plan(preset, rule, recorder):
        leg = _picked_leg(picked, recorder, folder if walked is None else None)
        if walked is None:
            walked = leg
        else:
            walked.extend(leg)
        stages.append(picked)
    assert walked is not None, "a preset has a stage"
    _note_unmet(prepared, rule, picked.chosen)
    legs, crossover = _close(walked, picked, recorder, folder)
    relaxed = relax_legs(prepared, legs, crossover, progress) if preset.options.relax else []
    path, t = _write(prepared, legs, crossover, folder)
    paged.give_back()
    wait()
    if work is None and writes():
        shutil.rmtree(recorder.folder)
    return MergeResult(preset, rule, stages, path, t, relaxed)


def _refuse_full_disk(preset: Preset, folder: Path, work: Path | None) -> None:
    """Refuse walks whose points, and temporary files on the same disk, do not fit on it.

    Where temporary files find no room on another disk, vectors lie in memory.

    Raises:
        OptionError: If less is free than they need beside what an interrupted merge has stored.
    """
    known = work.rglob("*") if work is not None else ()
    stored = sum(file.stat().st_size for file in known if file.is_file())
    needed, free = disk_bytes(preset)[1] - stored, shutil.disk_usage(folder).free
    temporary = temporary_bytes(preset) if paged.on_disk_of(folder) else 0
    needed += temporary
    if needed > free:
        count, size = preset.prepared.points, preset.space.network.n * 4
        beside = f" and {temporary / 1e9:.1f} GB of temporary files" if temporary else ""
        raise OptionError(
            f"the walks need {needed / 1e9:.1f} GB of disk for up to {count} points of "
            f"{size / 1e9:.2f} GB each{beside}, and {free / 1e9:.1f} GB are free in {folder}; give "
            "fewer `points` or one `damping`, or write to another disk"
        )


def _picked_leg(picked: PickedStage, recorder: Recorder, folder: Path | None) -> Leg:
    """Return a copy of the chosen candidate's leg up to the picked point.

    Args:
        picked: Stage.
        recorder: Recorder of a shortcut, where the preset has one.
        folder: Folder of the copy; None takes that of the candidates.
    """
    chosen, preset = picked.chosen, picked.preset
    place = chosen.leg.folder.parent if folder is None else folder
    recording = recorder.open(f"{place.name}-shortcut")
    start, name = chosen.leg.base, chosen.leg.name
    walk = preset.shortcut(start, chosen.step, picked.w, recording.state)
    if walk is not None:
        measure = preset.walker.probe(picked.stage.kept)
        leg = recording.follow(walk, "straight to the crossover", name, start, measure)
        return leg.copied(place)
    leg = chosen.leg.copied(place)
    if not preset.walks_on:
        leg.cut(chosen.step)
    leg.replace(chosen.step, picked.w)
    return leg


def _note_unmet(prepared: PreparedMerge, rule: PickRule, chosen: Candidate) -> None:
    if not chosen.score.feasible:
        prepared.notes.append(
            "no point of the walk keeps every budget; the best of them was picked"
        )
    elif unmet := rule.unmet(chosen.score):
        prepared.notes.append(unmet)


def _close(
    walked: Leg, picked: PickedStage, recorder: Recorder, folder: Path
) -> tuple[list[Leg], tuple[Leg, int]]:
    """Walk from the open ends to the crossover, preserving their functions.

    Args:
        walked: Leg of the stages.
        picked: Last stage.
        recorder: Recorder of the walks.
        folder: Folder of the path.

    Returns:
        All legs of the path, and the crossover as a leg and a step of it.
    """
    preset = picked.preset
    step = picked.chosen.step if preset.walks_on else len(walked.steps)
    closing = []
    for expert in preset.open_ends:
        recording = recorder.open(f"from-{expert.name}")
        walk = preset.close(expert, walked.weights(step), recording.state)
        label = f"from {expert.name} to the crossover"
        measure = preset.prepared.probe(expert)
        leg = recording.follow(walk, label, expert.name, expert.weights, measure)
        closing.append(leg.copied(folder))
    if preset.start is None:  # the walk is no part of the path: it only found the crossover
        walked.remove()
        return closing, (closing[0], len(closing[0].steps))
    return [walked, *closing], (walked, step)


def _write(
    prepared: PreparedMerge, legs: list[Leg], crossover: tuple[Leg, int], folder: Path
) -> tuple[WeightPath, float]:
    """Write the path, and return it with the place of its crossover."""
    space, points = prepared.space, prepared.points
    first, last = ((expert.name, prepared.checkpoint(expert)) for expert in space.ends)
    tasks = [expert.task for expert in space if expert.task is not None]
    known = space.experts[0].meta
    meta = {
        "architecture": known.get("architecture"),
        **({"config": known["config"]} if "config" in known else {}),
        "tasks": {task.name: task.normalisation.to_json() for task in tasks},
        **prepared.head_meta,
    }
    t = WeightPath.write(folder, first, last, legs, crossover, points, meta)
    wait()
    ends = {expert.name: expert.weights for expert in space.ends}
    return WeightPath(folder, space.network.device, network=space.network, ends=ends), t
