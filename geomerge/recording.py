"""A walk -> a leg; one that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from geomerge.leg import Leg, StepRecord
from geomerge.walk import WalkPoint
from geomerge.walk_state import StateFile

__all__ = ["record_leg"]


def record_leg(
    folder: Path,
    name: str,
    start: Tensor,  # (n,)
    walk: Iterable[WalkPoint],
    points: int,
    measure: Callable[[Tensor, Tensor], float] | None = None,
    kept: StateFile | None = None,
) -> Leg:
    """Follow a walk, keep its numbers, and store at most ``points`` of its points.

    Args:
        folder: Where points are stored.
        name: Name of the leg.
        start: Where the walk starts.
        walk: The walk; of one that was interrupted, what is left of it.
        points: Most points stored, both ends counted.
        measure: Called with the weights before and after a step, returns the measured functional
            change; None where the kept task has no inputs.
        kept: The walk's state, which is written now and then with what is known of the leg; the
            walk may write it as well. A leg that was finished before is not walked.

    Returns:
        The leg; its last point is always stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leg = Leg(folder, name, start)
    kept = StateFile() if kept is None else kept
    known = kept.state.part("leg")
    before, length, energy = known.tensors.get("w", start), 0.0, 0.0
    records: list[dict[str, Any]] = known.values.setdefault("steps", [])
    if records:
        leg.marks = [(step, at) for step, at in known.values["marks"]]
        leg.steps = [StepRecord(**record) for record in records]
        length, energy = leg.steps[-1].length, leg.steps[-1].energy
    if known.values.get("over"):
        return leg
    spacing = known.values.get("spacing", 0.0)  # grows so that storing and thinning stay few
    known.values["marks"] = leg.marks  # the list itself: what it holds is known at every moment

    def keep(dropped: Sequence[Path] = ()) -> None:
        kept.write()
        for file in dropped:  # only now does no state speak of them
            file.unlink()

    for step, point in enumerate(walk, len(leg.steps) + 1):
        measured = None if measure is None else measure(before, point.weights)
        length += max(point.predicted if measured is None else measured, 0.0) ** 0.5
        energy += max(point.predicted, 0.0)
        damping = point.damping if point.damping < float("inf") else None
        leg.steps.append(
            StepRecord(
                name, step, point.norm, point.distance, damping, point.predicted, measured,
                length, energy, dict(point.multipliers),
            )
        )  # fmt: skip
        records.append(asdict(leg.steps[-1]))
        known.tensors["w"] = before = point.weights
        if length - leg.marks[-1][1] >= spacing or step == 1:
            leg.store(step, before, length)
            if len(leg.marks) >= 2 * points:
                dropped = leg.thin(points)
                known.values["spacing"] = spacing = length / (2 * points)
                keep(dropped)
        if kept.due:
            keep()
    if leg.steps and leg.marks[-1][0] != len(leg.steps):
        leg.store(len(leg.steps), before, length)
    known.values["over"] = True
    keep(leg.thin(points))
    return leg
