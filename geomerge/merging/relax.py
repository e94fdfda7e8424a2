"""Relaxation of a merge's legs to least energy, with their ends held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from geomerge.evaluation.measures import score
from geomerge.expert import Expert
from geomerge.merging.measuring import inputs_of
from geomerge.merging.prepare import PreparedMerge
from geomerge.monitor.progress import Progress
from geomerge.paths.energy import PathMeasure, fine, measure_path
from geomerge.paths.leg import Leg
from geomerge.paths.relax import Relaxation, relax_path

__all__ = ["LegRelaxed", "relax_legs"]

_PIECES = 8  # straight pieces that a relaxed leg has at most
_EXAMPLES = 2000  # examples for the worst accuracy along the path


@dataclass(frozen=True)
class LegRelaxed:
    """Effect of relaxing a leg.

    Attributes:
        leg: Name of the leg; the function of that network is kept.
        before: Energy and length of the leg as it was walked.
        after: Energy and length of the leg now.
        share: Share of the way to the relaxed leg that was taken; 0 left it as it was.
        worst_before: Smallest accuracy along the walked leg, on the selection split.
        worst_after: Smallest accuracy along the leg now; not smaller.
    """

    leg: str
    before: PathMeasure
    after: PathMeasure
    share: float
    worst_before: float | None
    worst_after: float | None


def relax_legs(
    prepared: PreparedMerge,
    legs: list[Leg],
    crossover: tuple[Leg, int],
    progress: Callable[[Progress], None] | None = None,
) -> list[LegRelaxed]:
    """Relax every leg whose network has inputs that the walk may use; the others stay.

    Args:
        prepared: Merge whose path is relaxed.
        legs: Legs of the path; their stored points are replaced where that is better.
        crossover: Leg and step of the picked point, which stays.
        progress: Function called after each step.
    """
    relaxed = []
    for leg in legs:
        expert = prepared.space[leg.name]
        if expert.inputs is None:
            prepared.notes.append(
                f"the leg from {expert.name} was not relaxed: that needs inputs of its task"
            )
            continue
        last = leg.marks[-1][0]
        stay = crossover[1] if leg is crossover[0] else last
        parts = [(0, stay)] if stay == last else [(0, stay), (stay, last)]
        for part in parts:
            done = _relax(prepared, leg, part, progress)
            if done is not None:
                relaxed.append(done)
    return relaxed


def _relax(
    prepared: PreparedMerge,
    leg: Leg,
    part: tuple[int, int],
    progress: Callable[[Progress], None] | None,
) -> LegRelaxed | None:
    """Relax a leg between two stored steps; None where there is nothing between them."""
    expert, machine = prepared.space[leg.name], prepared.options.machine
    output = prepared.options.measure.output
    steps = [step for step, _ in leg.marks if part[0] <= step <= part[1]]
    if len(steps) < 3:
        return None
    walked = inputs_of(expert)
    manifolds = [(expert.network, walked)]
    held = [(expert.network, expert.task.select.inputs if expert.task else walked)]
    worst = _worst(expert)

    def on_step(step: int, steps: int, energy: float) -> None:
        if progress is not None:
            progress(Progress(f"relaxing the leg from {expert.name}", step, steps, {}))

    whole = [leg.weights(step) for step in steps]
    before = measure_path(whole, held, output)
    floor = None if worst is None else worst(whole)
    # No more points than will be stored: the path that is measured is the path that is stored.
    spread = min(_PIECES, len(steps) - 1, prepared.points // 2 - 1)
    few = [steps[round(k * (len(steps) - 1) / spread)] for k in range(spread + 1)]
    at = dict(zip(steps, whole, strict=True))
    relaxed = relax_path(
        [at[step] for step in few],
        manifolds,
        held,
        output,
        Relaxation(seed=machine.seed),
        worst=worst,
        on_step=on_step,
    )
    better = relaxed.after.energy < before.energy
    if floor is not None and relaxed.worst_after is not None:
        better = better and relaxed.worst_after >= floor
    if not better:
        return LegRelaxed(leg.name, before, before, 0.0, floor, floor)
    for step, w in list(zip(few, relaxed.points, strict=True))[1:-1]:
        leg.replace(step, w)
    leg.straighten(few, relaxed.after.lengths)
    return LegRelaxed(leg.name, before, relaxed.after, relaxed.share, floor, relaxed.worst_after)


def _worst(expert: Expert) -> Callable[[list[Tensor]], float] | None:
    """Return the function of points that is the smallest accuracy along them, finely spread."""
    if expert.task is None:
        return None
    few = expert.task.select.first(_EXAMPLES)
    return lambda points: min(score(expert.network, w, few) for w in fine(points, 2))
