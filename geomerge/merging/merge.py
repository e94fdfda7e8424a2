"""Two networks -> a path between them and the network on it that does both tasks."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from geomerge.checkpoint import Checkpoint
from geomerge.crossover import PickRule
from geomerge.merging.candidates import (
    Candidate,
    Walked,
    pick_candidates,
    probe_of,
    shortest_of_best,
    walk_candidates,
)
from geomerge.merging.monitor import Monitor, Progress
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan, choose_rule, plan_merge
from geomerge.merging.sides import Sides, prepare_sides
from geomerge.path import Leg, WeightPath, record_leg

__all__ = ["Merge", "merge"]


@dataclass
class Merge:
    """The outcome of a merge.

    Attributes:
        sides: Both networks and what they brought.
        plan: What was done.
        rule: How the point was picked.
        candidates: All that were walked.
        chosen: The one that the path goes through.
        path: The path from a to b.
        t: Where on the path the crossover lies.
        w: The crossover's weights, shape (n,).
        diagonal: Weights of which the metric knows only the diagonal.
    """

    sides: Sides
    plan: Plan
    rule: PickRule
    candidates: list[Candidate]
    chosen: Candidate
    path: WeightPath
    t: float
    w: Tensor
    diagonal: tuple[str, ...]

    def checkpoint(self) -> Checkpoint:
        """Return the crossover network, ready to save."""
        return self.path.checkpoint(self.t)


def merge(
    a: Checkpoint,
    b: Checkpoint,
    options: MergeOptions,
    *,
    folder: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Merge:
    """Walk from one network toward the other's function or weights, and pick the crossover.

    Args:
        a: Network a, where the path starts (t = 0).
        b: Network b, where it ends (t = 1).
        options: What the walk may use and how the point is picked.
        folder: Where the path is stored; None takes a temporary folder that goes with the path.
        on_progress: Called after each step.

    Returns:
        The path and the crossover. Neither network is changed.

    Raises:
        GeomergeError: If the two do not belong together, data is missing, or the walk diverges.
    """
    sides = prepare_sides(a, b, options)
    plan = plan_merge(sides, options)
    rule = choose_rule(sides, plan, options)
    if folder is not None:
        return _merge(sides, plan, rule, options, Path(folder), on_progress)
    temporary = Path(tempfile.mkdtemp(prefix="geomerge-"))
    try:
        merged = _merge(sides, plan, rule, options, temporary, on_progress)
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
    on_progress: Callable[[Progress], None] | None,
) -> Merge:
    folder.mkdir(parents=True, exist_ok=True)
    walked = walk_candidates(sides, plan, options, folder, on_progress)
    candidates = pick_candidates(walked, rule)
    chosen = shortest_of_best(candidates, rule.margin)
    if rule.needs == "one" and chosen.value < 0:
        sides.notes.append(f"no point of the path meets {rule.name}; the nearest to it was picked")
    for candidate in candidates:
        if candidate is not chosen:
            shutil.rmtree(candidate.leg.folder)
    leg = _moved(chosen.leg, folder)
    legs = [leg]
    if plan.preset == "sketch":
        leg.cut(chosen.step)
        legs.append(_close(walked, leg.weights(chosen.step), options, folder, on_progress))
    t = WeightPath.write(
        folder,
        sides.a.checkpoint,
        sides.b.checkpoint,
        legs,
        (leg, chosen.step),
        options.points,
        {
            "architecture": sides.a.checkpoint.meta.get("architecture"),
            "tasks": {
                s.task.name: s.task.normalisation.to_json()
                for s in (sides.a, sides.b)
                if s.task is not None
            },
        },
    )
    path = WeightPath(folder, sides.network.device)
    return Merge(
        sides=sides,
        plan=plan,
        rule=rule,
        candidates=candidates,
        chosen=chosen,
        path=path,
        t=t,
        w=path.at(t),
        diagonal=walked.diagonal,
    )


def _close(
    walked: Walked,
    crossover: Tensor,  # (n,)
    options: MergeOptions,
    folder: Path,
    on_progress: Callable[[Progress], None] | None,
) -> Leg:
    """Walk the other leg: from the goal's network to the crossover, keeping the goal's function."""
    goal = walked.plan.goal
    walk, steps = walked.walker.reach(crossover)
    return record_leg(
        folder,
        goal.name,
        goal.w,
        Monitor(walked.sides, on_progress).watch(walk, f"from {goal.name} to the crossover", steps),
        options.points,
        probe_of(walked.sides, goal, options.output),
    )


def _moved(leg: Leg, folder: Path) -> Leg:
    """Move a leg's files up into the path's own folder."""
    for file in leg.folder.iterdir():
        file.rename(folder / file.name)
    leg.folder.rmdir()
    leg.folder = folder
    return leg
