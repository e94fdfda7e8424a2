"""Networks -> a path between them and the network on it that does every task."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from geomerge.errors import OptionError
from geomerge.evaluation.pick import PickRule
from geomerge.io.checkpoint import Checkpoint
from geomerge.merging.candidates import best_candidate, pick_candidates, walk_stage
from geomerge.merging.fitting import fit_memory
from geomerge.merging.monitor import Monitor
from geomerge.merging.options import MergeOptions
from geomerge.merging.outcome import Merge
from geomerge.merging.plan import Plan, choose_rule, plan_merge
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.probe import probe_of
from geomerge.merging.relaxing import relax_legs
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walks import Walker
from geomerge.monitor.progress import Progress
from geomerge.paths.leg import Leg, record_leg
from geomerge.paths.path import WeightPath
from geomerge.walks.state import StateFile

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
        >>> merged.plan.preset  # b has no sketch: eq. (7) of arXiv 2012.09605
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
    plan = plan_merge(sides, options)
    rule = choose_rule(sides, plan, options)
    if folder is not None:
        place = None if work is None else Path(work)
        if place is not None and place.resolve().is_relative_to(Path(folder).resolve()):
            raise OptionError(f"expected work outside of the path's folder {folder}, got {work}")
        return _merge(sides, plan, rule, options, Path(folder), place, on_progress)
    temporary = Path(tempfile.mkdtemp(prefix="geomerge-"))
    try:
        merged = _merge(sides, plan, rule, options, temporary, None, on_progress)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    weakref.finalize(merged.path, shutil.rmtree, temporary, ignore_errors=True)
    return merged


def _merge(
    sides: Sides,
    plan: Plan,
    rule: PickRule,
    options: MergeOptions,
    folder: Path,
    kept: Path | None,
    on_progress: Callable[[Progress], None] | None,
) -> Merge:
    resumable, work = kept is not None, kept or folder / "walks"
    if resumable:  # what an interrupted call had put together is put together anew
        WeightPath.clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    walker = Walker(sides, options)
    start = plan.begin(sides)
    walked_leg: Leg | None = None
    stages, chosen_all = [], []
    for number, stage in enumerate(plan.stages):
        place = work / f"stage-{number}"
        walked = walk_stage(
            sides, plan, stage, start, walker, options, place, on_progress, resumable=resumable
        )
        candidates = pick_candidates(walked, rule)
        chosen = best_candidate(candidates, rule)
        leg = chosen.leg.copied(folder if walked_leg is None else place)
        if plan.preset != "paper":
            leg.cut(chosen.step)
        leg.replace(chosen.step, sides.settled(leg.weights(chosen.step)))
        start = leg.weights(chosen.step)
        if walked_leg is None:
            walked_leg = leg
        else:
            walked_leg.extend(leg)
        stages.append(candidates)
        chosen_all.append(chosen)
    assert walked_leg is not None
    if chosen.score.over_budget:
        sides.notes.append("no point of the walk keeps every budget; the best of them was picked")
    if rule.needs == "one" and -2 <= chosen.value < -1:
        sides.notes.append(f"no point of the path meets {rule.name}; the nearest to it was picked")
    if plan.preset == "paper":
        legs, crossover = [walked_leg], (walked_leg, chosen.step)
    else:
        ends = [s for s in (sides.all[0], sides.all[-1]) if s is not plan.start]
        closing = []
        for side in ends:
            place = work / f"from-{side.name}"
            file = StateFile(place / "state" if resumable else None, options.device)
            leg = _close(sides, side, start, walker, options, place, file, on_progress)
            closing.append(leg.copied(folder))
        if plan.start is None:  # the walk from the middle found the crossover; it is on no path
            walked_leg.remove()
            legs, crossover = closing, (closing[0], len(closing[0].steps))
        else:
            legs, crossover = [walked_leg, *closing], (walked_leg, len(walked_leg.steps))
    relaxed = relax_legs(sides, legs, crossover, options, on_progress) if options.relax else []
    head = _head(sides)
    stored = [
        (s.name, replace(s.checkpoint, meta={**s.checkpoint.meta, **head}))
        for s in (sides.all[0], sides.all[-1])
    ]
    t = WeightPath.write(
        folder,
        stored[0],
        stored[1],
        legs,
        crossover,
        options.points,
        {
            "architecture": sides.all[0].checkpoint.meta.get("architecture"),
            "tasks": {
                s.task.name: s.task.normalisation.to_json() for s in sides if s.task is not None
            },
            **head,
        },
    )
    if not resumable:
        shutil.rmtree(work)
    path = WeightPath(folder, sides.network.device)
    return Merge(
        options=options,
        sides=sides,
        plan=plan,
        rule=rule,
        stages=stages,
        chosen=chosen_all,
        path=path,
        t=t,
        w=path.at(t),
        diagonal=walked.diagonal,
        relaxed=relaxed,
    )


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


def _close(
    sides: Sides,
    side: Side,
    crossover: Tensor,  # (n,)
    walker: Walker,
    options: MergeOptions,
    folder: Path,
    kept: StateFile,
    on_progress: Callable[[Progress], None] | None,
) -> Leg:
    """Walk the other leg: from a network to the crossover, keeping that network's function."""
    walk, steps = walker.reach(side, crossover, kept.state)
    label = f"from {side.name} to the crossover"
    watched = Monitor(sides, on_progress).watch(walk, label, steps, kept.steps)
    measure = probe_of(side, options.output)
    return record_leg(folder, side.name, side.w, watched, options.points, measure, kept)
