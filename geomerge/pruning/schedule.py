"""Sparse planes, and the stages in which a walk reaches them.

What goes next is chosen anew at every stage, from the weights and the metric there; what went
stays away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.metrics import Metric
from geomerge.networks.network import Network
from geomerge.pruning.masks import prunable, removable, saliency, weakest, zeros
from geomerge.pruning.parts import Role
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.units import Units
from geomerge.walks.plane import Prescription, Stage
from geomerge.walks.state import WalkState

__all__ = ["cubic_schedule", "restoring_stages", "weight_stages"]


def cubic_schedule(first: float, last: float, stages: int) -> list[float]:
    """Return levels from the one after ``first`` to ``last``: large steps first, small ones last.

    Zhu & Gupta 2017, eq. (1).
    """
    return [last + (first - last) * (1 - k / stages) ** 3 for k in range(1, stages + 1)]


def weight_stages(
    network: Network,
    start: Tensor,  # (n,)
    share: float,
    stages: int,
    *,
    scope: str = "global",
    nm: tuple[int, int] | None = None,
    kind: str = "obs",
    state: WalkState | None = None,
) -> list[Stage]:
    """Return stages that set single weights to zero.

    Args:
        network: The network.
        start: Where the walk starts; weights that are zero there stay so.
        share: Share of the prunable weights that is zero at the end; unused with ``nm``.
        stages: How many.
        scope: ``"global"`` or ``"per-layer"``.
        nm: N and M of an N:M pattern.
        kind: Saliency by which they go.
        state: Where the stages remember what went; of an interrupted walk, what went before.

    Returns:
        The stages, to be called in order.

    Raises:
        OptionError: If nothing would go, or nothing of a layer would stay.
    """
    places = prunable(network)
    if not places:
        raise OptionError(
            "the network has no linear layer and no convolution, expected one at least: their "
            "weights are what can go"
        )
    total = sum(place.stop - place.start for place in places.values())
    known = (WalkState() if state is None else state).tensors
    zero = zeros(start, places)
    known.setdefault("gone", zero)
    pattern = removable(start.square(), network, places, share, scope, nm)
    _check_pattern(pattern, places, nm)
    first, final = (float(mask.sum()) / total for mask in (zero, pattern))
    parameters = network.trained

    def stage(level: float) -> Stage:
        def at(w: Tensor, metric: Metric) -> Prescription:
            scores = saliency(w, metric, kind)
            scores[known["gone"]] = -1.0
            for place in places.values():  # the last weight of a layer stays
                scores[place.start + int(scores[place].argmax())] = torch.inf
            last = removable(scores, network, places, share, scope, nm)
            count = min(round(level * total), int(last.sum()))
            known["gone"] = gone = known["gone"] | weakest(scores, last, count)
            left = (final - level) / (final - first) if final != first else 0.0
            return Prescription(torch.where(gone, 0.0, w), parameters & ~gone, left)

        return at

    return [stage(level) for level in cubic_schedule(first, final, stages)]


def _check_pattern(
    pattern: Tensor,  # (n,), bool
    places: Mapping[str, slice],
    nm: tuple[int, int] | None,
) -> None:
    """Refuse a plane on which nothing is zero, or nothing of a layer is left."""
    if not pattern.any():
        if nm is None:
            raise OptionError("no weight goes at this --sparsity; ask for more")
        raise OptionError(
            f"no layer has a number of inputs that {nm[1]} divides, expected one at least for an "
            "N:M pattern; give --sparsity instead"
        )
    for name, place in places.items():
        if pattern[place].all():
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
    """Return stages in which units come back as they were; the other weights make room.

    Args:
        network: The network.
        origin: Weights that they come back to.
        units: The units of the network.
        returning: By :attr:`Units.layer`, which ones come back, in this order.
        stages: How many, at most.

    Returns:
        The stages, to be called in order. Units that have come back do not move again.
    """
    parameters = network.trained
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
            # Nothing flows through what comes back yet: what it does shows only afterwards.
            free = parameters & ~held & ~away
            return Prescription(target, free, 1 - done / len(queue), w)

        return at

    return [stage(k) for k in range(1, stages + 1)]
