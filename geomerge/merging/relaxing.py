"""Legs of a path -> the same legs with least energy, their ends where they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from geomerge.evaluation.accuracy import accuracy
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side, Sides
from geomerge.monitor.progress import Progress
from geomerge.paths.energy import PathMeasure, fine, measure_path
from geomerge.paths.leg import Leg
from geomerge.paths.relax import Relaxation, relax_path

__all__ = ["LegRelaxed", "relax_legs"]

_PIECES = 8  # straight pieces that a relaxed leg has at most
_EXAMPLES = 2000  # on which the worst accuracy along the way is measured


@dataclass(frozen=True)
class LegRelaxed:
    """What relaxing a leg did.

    Attributes:
        leg: Its name; the function of that network is kept.
        before: The leg as it was walked.
        after: As it is now.
        share: How much of the way to the relaxed leg was taken; 0 left it as it was.
        worst_before: Smallest accuracy along the walked leg, on the selection split.
        worst_after: The same now; not smaller.
    """

    leg: str
    before: PathMeasure
    after: PathMeasure
    share: float
    worst_before: float | None
    worst_after: float | None


def relax_legs(
    sides: Sides,
    legs: list[Leg],
    crossover: tuple[Leg, int],
    options: MergeOptions,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[LegRelaxed]:
    """Relax every leg whose network has inputs that the walk may use; the others stay.

    Args:
        sides: The networks.
        legs: The legs; their stored points are replaced where that is better.
        crossover: The leg and the step of the picked point, which stays.
        options: Output of the metric and seed.
        on_progress: Called after each step.
    """
    found = []
    for leg in legs:
        side = sides[leg.name]
        if side.manifold is None:
            sides.notes.append(
                f"the leg from {side.name} was not relaxed: that needs inputs of its task"
            )
            continue
        last = leg.marks[-1][0]
        stay = crossover[1] if leg is crossover[0] else last
        relaxed = [_relax(leg, side, (0, stay), options, on_progress)]
        if stay != last:  # the paper's only leg goes on from the crossover
            relaxed.append(_relax(leg, side, (stay, last), options, on_progress))
        found += [r for r in relaxed if r is not None]
    return found


def _relax(
    leg: Leg,
    side: Side,
    part: tuple[int, int],
    options: MergeOptions,
    on_progress: Callable[[Progress], None] | None,
) -> LegRelaxed | None:
    """Relax a leg between two stored steps; None where there is nothing between them."""
    assert side.manifold is not None
    steps = [step for step, _ in leg.marks if part[0] <= step <= part[1]]
    if len(steps) < 3:
        return None
    manifolds = [(side.network, side.manifold)]
    held = [(side.network, side.task.select.inputs if side.task else side.manifold)]
    worst = _worst(side)

    def on_step(step: int, steps: int, energy: float) -> None:
        if on_progress is not None:
            on_progress(Progress(f"relaxing the leg from {side.name}", step, steps, {}))

    whole = [leg.weights(step) for step in steps]
    before = measure_path(whole, held, options.output)
    floor = None if worst is None else worst(whole)
    # No more points than will be stored: what is measured is what is kept.
    spread = min(_PIECES, len(steps) - 1, options.points // 2 - 1)
    few = [steps[round(k * (len(steps) - 1) / spread)] for k in range(spread + 1)]
    at = dict(zip(steps, whole, strict=True))
    relaxed = relax_path(
        [at[step] for step in few],
        manifolds,
        held,
        options.output,
        Relaxation(seed=options.seed),
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


def _worst(side: Side) -> Callable[[list[Tensor]], float] | None:
    if side.task is None:
        return None
    few = side.task.select.first(_EXAMPLES)
    return lambda points: min(accuracy(side.network, w, few) for w in fine(points, 2))
