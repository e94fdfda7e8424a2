"""Walk from configuration to configuration: units go and come back as a plan says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from geomerge.errors import OptionError
from geomerge.io.checkpoint import Checkpoint
from geomerge.monitor.progress import Progress
from geomerge.pruning.goals import removal_of, unit_stages
from geomerge.pruning.gradual_removal import MOST_RATES
from geomerge.pruning.measure import PruneCurvePoint, PruneRow, curve_of, row_of
from geomerge.pruning.obs import magnitudes
from geomerge.pruning.options import SparsifyOptions
from geomerge.pruning.plan import PlanStep, check_plan, resolve
from geomerge.pruning.problem import Subject, prepare_subject
from geomerge.pruning.schedule import restoring_stages
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.sparsify import store_walk
from geomerge.pruning.units import unit_named
from geomerge.pruning.walks import PruneWalk, walk_stages
from geomerge.walks.plane import Stage
from geomerge.walks.state import StateFile, WalkState

__all__ = ["Configuration", "reconfigure"]


@dataclass(frozen=True)
class Configuration:
    """A configuration that was reached.

    Attributes:
        name: As the plan calls it.
        walked: How.
        removed: By layer, the units that are gone in it.
        row: What it is worth.
        dense: What the network that the plan began with is worth.
        naive: What the network that the plan began with is worth with these units just cut out.
        curve: Along the move to it.
        epochs: What the move cost, in epochs of training.
    """

    name: str
    walked: PruneWalk
    removed: Mapping[str, list[int]]
    row: PruneRow
    dense: PruneRow
    naive: PruneRow
    curve: list[PruneCurvePoint]
    epochs: float


def reconfigure(
    checkpoint: Checkpoint,
    plan: Sequence[PlanStep],
    options: SparsifyOptions,
    folder: Path,
    start: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    work: Path | None = None,
) -> tuple[Subject, list[Configuration]]:
    """Reach the configurations of a plan, each from the one before.

    Args:
        checkpoint: The network that the plan begins with: its function is kept, and units come
            back as they are in it.
        plan: The steps.
        options: How; what they say about a goal does not count.
        folder: Where the paths are stored, each under the name of its step.
        start: Where the first step starts, where units of the network are gone already.
        on_progress: Called after each point of a walk.
        work: As of :func:`~geomerge.pruning.sparsify.sparsify`.

    Returns:
        The network before, and the configurations.

    Raises:
        GeomergeError: If inputs, options, data or plan are wrong.
    """
    if options.walk == "pull":
        raise OptionError("the soft pull reaches one plane, a plan has several; use prescribed")
    subject = prepare_subject(checkpoint, options)
    w = subject.w if start is None else subject.network.ravel(start.weights)
    check_plan(plan, subject.units, removed_units(subject.network, w, subject.units))
    _check_whole(subject, plan)
    dense = row_of(subject, "dense", subject.w)
    reached = []
    spent = subject.cost.epochs(len(subject.task.train.labels))
    place = folder / ".walks" if work is None else work
    for number, step in enumerate(plan, 1):
        gone = removed_units(subject.network, w, subject.units)
        own = place / f"move-{number}"
        kept = StateFile(None if work is None else own / "state", options.device)
        stages = _stages(subject, step, gone, kept.state.part("stages"))
        walked = walk_stages(subject, w, stages, own, step.name, on_progress=on_progress, kept=kept)
        path = store_walk(subject, walked, folder / step.name / "path", w)
        w = walked.weights
        removed = removed_units(subject.network, w, subject.units)
        total = subject.cost.epochs(len(subject.task.train.labels))
        reached.append(
            Configuration(
                step.name,
                walked,
                removed,
                row_of(subject, step.name, w),
                dense,
                row_of(subject, f"{step.name}, cut out", _cut_out(subject, removed)),
                curve_of(subject, path),
                total - spent,
            )
        )
        spent = total
    if work is None:
        shutil.rmtree(place)
    return subject, reached


def _check_whole(subject: Subject, plan: Sequence[PlanStep]) -> None:
    """Refuse before the first walk what a later step could not do.

    Raises:
        OptionError: If a step restores units that the network as it came does not have, or
            chooses among more units than a program of rates takes.
    """
    missing = removed_units(subject.network, subject.w, subject.units)
    for step in plan:
        for name in step.restore:
            layer = unit_named(subject.units, name).layer
            if layer in missing:
                raise OptionError(
                    f"step {step.name!r}: units of {name} are zero in the network that the plan "
                    "begins with, so they have nothing to come back to; begin with the dense "
                    "network, or with the folder of the run that removed them"
                )
        found = [unit_named(subject.units, name) for name in step.remove]
        if subject.options.choice == "rates" and sum(one.count for one in found) > MOST_RATES:
            raise OptionError(
                f"step {step.name!r}: --choose rates takes at most {MOST_RATES} units to choose "
                "from; use --choose greedy"
            )


def _stages(
    subject: Subject, step: PlanStep, gone: Mapping[str, Sequence[int]], state: WalkState
) -> list[Stage]:
    """Return the stages of a step: units go first, then units come back."""
    stages: list[Stage] = []
    if step.remove:
        stages += unit_stages(subject, removal_of(subject, step.remove, gone), gone, state)
    returning: dict[str, list[int]] = {}
    for name, wanted in step.restore.items():
        layer = unit_named(subject.units, name).layer
        found = resolve(wanted, gone.get(layer, ()))
        strongest = _strongest(subject, layer, gone.get(layer, ()))
        returning[layer] = strongest[:found] if isinstance(found, int) else list(found)
    if returning:
        stages += restoring_stages(
            subject.network, subject.w, subject.units, returning, subject.options.stages
        )
    return stages


def _strongest(subject: Subject, layer: str, gone: Sequence[int]) -> list[int]:
    """Return units that are gone, those that weigh most in the network as it came first."""
    sizes = magnitudes(subject.network, subject.units[layer], subject.w)
    return sorted(gone, key=lambda unit: (-float(sizes[unit]), unit))


def _cut_out(subject: Subject, removed: Mapping[str, Sequence[int]]) -> Tensor:  # (n,)
    w = subject.w.clone()
    for layer, found in removed.items():
        subject.units[layer].clear(w, found)
    return w
