"""Sparsity schedules: stages of a walk that remove single weights or restore units.

The next weights to remove are chosen in every stage from its weights and metric. Removed weights
stay zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.metrics import Metric
from geomerge.networks.network import Network
from geomerge.pruning.masks import SparsityPattern, prunable, removable, saliency, weakest, zeros
from geomerge.pruning.parts import Role
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.units import Units
from geomerge.walks.plane import Prescription, Stage
from geomerge.walks.state import WalkState

__all__ = ["cubic_schedule", "restoring_stages", "weight_stages"]


def cubic_schedule(first: float, last: float, stages: int) -> list[float]:
    """Return levels of sparsity after ``first`` up to ``last``, with decreasing differences.

    Zhu & Gupta 2017, eq. (1).
    """
    return [last + (first - last) * (1 - k / stages) ** 3 for k in range(1, stages + 1)]


def weight_stages(
    network: Network,
    start: Tensor,  # (n,)
    pattern: SparsityPattern,
    stages: int,
    kind: str = "obs",
    state: WalkState | None = None,
) -> list[Stage]:
    """Return stages that set single weights to zero.

    Args:
        network: Network.
        start: First point of the walk; zero weights stay zero.
        pattern: Sparsity pattern at the end.
        stages: Number of stages.
        kind: Saliency that determines the order of removal.
        state: State in which the stages store the removed weights, or that of an interrupted walk.

    Returns:
        Stages, to be called in order.

    Raises:
        OptionError: If no weight would be removed, or all weights of a layer.
    """
    places = prunable(network)
    if not places:
        raise OptionError(
            "the network has no linear layer and no convolution that is not frozen, expected at "
            "least one: only their weights can be removed"
        )
    total = sum(place.stop - place.start for place in places.values())
    known = (WalkState() if state is None else state).tensors
    zero = zeros(start, places)
    known.setdefault("gone", zero)
    smallest = removable(start.square(), network, places, pattern)
    _check_mask(smallest, places, pattern)
    first, final = (float(mask.sum()) / total for mask in (zero, smallest))
    parameters = network.movable

    def stage(level: float) -> Stage:
        def at(w: Tensor, metric: Metric) -> Prescription:
            scores = saliency(w, metric, kind)
            scores[known["gone"]] = -1.0
            for place in places.values():  # at least one weight of every layer stays
                scores[place.start + int(scores[place].argmax())] = torch.inf
            last = removable(scores, network, places, pattern)
            count = min(round(level * total), int(last.sum()))
            known["gone"] = gone = known["gone"] | weakest(scores, last, count)
            left = (final - level) / (final - first) if final != first else 0.0
            return Prescription(torch.where(gone, 0.0, w), parameters & ~gone, left)

        return at

    return [stage(level) for level in cubic_schedule(first, final, stages)]


def _check_mask(
    mask: Tensor,  # (n,), bool
    places: Mapping[str, slice],
    pattern: SparsityPattern,
) -> None:
    """Refuse a mask without removed weights, or with no kept weight in a layer."""
    if not mask.any():
        if pattern.nm is None:
            raise OptionError("no weight is removed at this `sparsity`; ask for more")
        raise OptionError(
            f"no layer has a number of inputs divisible by {pattern.nm[1]}, expected at least one "
            "for an N:M pattern; give `sparsity` instead"
        )
    for name, place in places.items():
        if mask[place].all():
            raise OptionError(
                f"nothing would be left of {name} at this sparsity, expected a weight in every "
                "layer; ask for less"
            )


def restoring_stages(
    network: Network,
    origin: Tensor,  # (n,)
    units: Mapping[str, Units],
    returning: Mapping[str, Sequence[int]],
    stages: int,
) -> list[Stage]:
    """Return stages that restore units to their original weights and compensate with the others.

    Args:
        network: Network.
        origin: Weights with the original values of the units.
        units: Units of the network.
        returning: Units to restore in this order, by :attr:`Units.layer`.
        stages: Largest number of stages.

    Returns:
        Stages, to be called in order. Restored units do not move again.
    """
    parameters = network.movable
    queue = [(layer, unit) for layer, found in returning.items() for unit in found]
    stages = min(stages, len(queue))

    def stage(k: int) -> Stage:
        def at(w: Tensor, metric: Metric) -> Prescription:
            done = round(len(queue) * k / stages)
            back = queue[:done]
            away = torch.zeros_like(parameters)
            held = torch.zeros_like(parameters)
            target = w.clone()
            for layer, found in removed_units(network, w, units).items():
                still = [unit for unit in found if (layer, unit) not in back]
                away[units[layer].places(still).to(w.device)] = True
            for layer in returning:
                chosen = units[layer].chosen([unit for name, unit in back if name == layer])
                for part in units[layer].parts:
                    at_part = part.places(chosen).to(w.device)
                    target[at_part] = origin[at_part]
                    if part.role is not Role.STATISTICS:
                        held[at_part] = True
            target = torch.where(away, 0.0, target)
            # No compensation, since a restored unit has no first-order effect: its weights were
            # zero.
            free = parameters & ~held & ~away
            return Prescription(target, free, 1 - done / len(queue), w)

        return at

    return [stage(k) for k in range(1, stages + 1)]
