"""A merge -> all that a report shows of it beside its table and its curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from geomerge.merging.answers import Answers, changed_answers
from geomerge.merging.layer_distances import LayerDistance, layer_distances
from geomerge.merging.merge import Merge
from geomerge.merging.plane import LossPlane, plane_of

__all__ = ["Seen", "look_at"]


@dataclass(frozen=True)
class Seen:
    """What there is to look at.

    Attributes:
        layers: How far each tensor of the crossover lies from the networks.
        answers: How the answers on each network's test split changed.
        plane: The losses around the path; None where there is no plane.
    """

    layers: list[LayerDistance]
    answers: Mapping[str, Answers]
    plane: LossPlane | None


def look_at(merged: Merge) -> Seen:
    """Measure what a report shows of a merge; nothing is chosen by it.

    Args:
        merged: The merge.
    """
    return Seen(layer_distances(merged), changed_answers(merged), plane_of(merged))
