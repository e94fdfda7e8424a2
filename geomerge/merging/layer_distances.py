"""How far each tensor of the crossover lies from the networks that it was made of."""

from __future__ import annotations

from dataclasses import dataclass

from geomerge.merging.merge import Merge

__all__ = ["LayerDistance", "layer_distances"]


@dataclass(frozen=True)
class LayerDistance:
    """One tensor of the state dict.

    Attributes:
        name: Its name.
        weights: How many weights it has.
        distance: |w - w_i| of that tensor alone, by network.
        apart: |w_last - w_first| of that tensor alone.
    """

    name: str
    weights: int
    distance: dict[str, float]
    apart: float


def layer_distances(merged: Merge) -> list[LayerDistance]:
    """Return the distances of all tensors of the crossover, in the order of the state dict.

    Args:
        merged: The merge.
    """
    sides = merged.sides
    first, last = sides.all[0].w, sides.all[-1].w
    return [
        LayerDistance(
            name=name,
            weights=place.stop - place.start,
            distance={s.name: float((merged.w[place] - s.w[place]).norm()) for s in sides},
            apart=float((last[place] - first[place]).norm()),
        )
        for name, place in sides.network.slices.items()
    ]
