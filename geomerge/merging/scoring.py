"""Points of weight space -> what is known of them, for picking one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import Score
from geomerge.merging.probe import probe_of
from geomerge.merging.sides import Side

__all__ = ["Scorer", "select_accuracies"]


def select_accuracies(
    sides: Sequence[Side],
    w: Tensor,  # (n,)
) -> dict[str, float | None]:
    """Return the accuracy on each side's selection split, None where a task is not there."""
    return {s.name: accuracy(s.network, w, s.task.select) if s.task else None for s in sides}


class Scorer:
    """Measures points for the pick: on selection splits, or by the sketch where there is none.

    Args:
        sides: The sides that count.
        output: What drifts are measured in.
    """

    def __init__(self, sides: Sequence[Side], output: str) -> None:
        self._sides = sides
        self._probes = {s.name: probe_of(s, output) for s in sides}

    def __call__(
        self,
        w: Tensor,  # (n,)
    ) -> Score:
        """Return all that can be measured of a point."""
        gaps = {s.name: float((w - s.w).norm()) for s in self._sides}
        total = sum(gaps.values()) or 1.0
        return Score(
            select_accuracies(self._sides, w),
            {s.name: self._drift(s, w) for s in self._sides},
            {name: gap / total for name, gap in gaps.items()},
        )

    def _drift(self, side: Side, w: Tensor) -> float | None:
        probe = self._probes[side.name]
        if probe is not None:
            return probe(side.w, w)
        if side.sketch is not None:
            gap = w - side.w
            return side.sketch.metric.inner(gap, gap)
        return None
