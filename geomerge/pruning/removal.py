"""Greedy removal of units: numbers of units by layer, or a target size of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.metrics import Metric
from geomerge.networks.network import Network
from geomerge.pruning.obs import Consumers, magnitudes
from geomerge.pruning.schedule import cubic_schedule
from geomerge.pruning.units import Units
from geomerge.walks.plane import Prescription, Stage
from geomerge.walks.state import WalkState

__all__ = ["CHOICES", "Removal", "removal_stages"]

CHOICES = ("greedy", "rates", "magnitude")


@dataclass(frozen=True)
class Removal:
    """Goal of a removal of units.

    Attributes:
        units: Sets of units, by :attr:`Units.layer`.
        candidates: Removable units, by set.
        counts: Number of candidates to remove, by set; None if a size is the goal.
        size: Function that returns the size of the network, such as its FLOPs, for numbers of
            removed units by set; None if counts are the goal.
        limit: Largest size allowed at the end.
    """

    units: Mapping[str, Units]
    candidates: Mapping[str, Sequence[int]]
    counts: Mapping[str, int] | None = None
    size: Callable[[Mapping[str, int]], int] | None = None
    limit: int = 0


def removal_stages(
    network: Network,
    removal: Removal,
    gone: Mapping[str, Sequence[int]],
    stages: int,
    choice: str = "greedy",
    state: WalkState | None = None,
) -> list[Stage]:
    """Return stages that set units to zero in ascending order of their cost.

    Args:
        network: Network.
        removal: Goal of the removal.
        gone: Units that are zero at the start, by :attr:`Units.layer`.
        stages: Number of stages, at most one per unit to remove.
        choice: Order of removal: ``"greedy"`` by compensated cost, updated after each unit;
            ``"magnitude"`` by the L1 norm of the producing weights.
        state: State in which the stages store the removed units, or that of an interrupted walk.

    Returns:
        Stages, to be called in order.

    Raises:
        OptionError: If the size cannot be reached with at least one unit in every layer.
    """
    known = (WalkState() if state is None else state).values
    first = {layer: len(gone.get(layer, ())) for layer in removal.units}
    if removal.size is not None:
        least = removal.size({layer: units.count - 1 for layer, units in removal.units.items()})
        if least > removal.limit:
            raise _too_small(removal, least)
    away: dict[str, list[int]] = known.setdefault(
        "away", {layer: list(gone.get(layer, ())) for layer in removal.units}
    )

    def stage(level: float) -> Stage:
        def at(w: Tensor, metric: Metric) -> Prescription:
            candidates = _Candidates(network, removal, away, w, metric, choice)
            if removal.counts is None:
                _reduce(removal, away, candidates, first, level)
            else:
                for layer, count in removal.counts.items():
                    while len(away[layer]) < first[layer] + round(level * count):
                        away[layer].append(candidates.take(layer))
            zero = torch.zeros(network.n, dtype=torch.bool)
            for layer, found in away.items():
                zero[removal.units[layer].places(found)] = True
            zero = zero.to(w.device)
            target = torch.where(zero, 0.0, w)
            return Prescription(
                target, network.movable & ~zero, 1 - level, candidates.compensated(w)
            )

        return at

    total = stages if removal.counts is None else sum(removal.counts.values())
    return [stage(level) for level in cubic_schedule(0.0, 1.0, min(stages, total))]


class _Candidates:
    """Remaining candidates of a removal and their current costs."""

    def __init__(
        self,
        network: Network,
        removal: Removal,
        away: Mapping[str, Sequence[int]],
        w: Tensor,  # (n,)
        metric: Metric,
        choice: str,
    ) -> None:
        self._choice = choice
        self._consumers: dict[str, Consumers] = {}
        self._barred: dict[str, Tensor] = {}
        self._costs: dict[str, Tensor] = {}
        for layer, units in removal.units.items():
            barred = torch.ones(units.count, dtype=torch.bool)
            barred[list(removal.candidates[layer])] = False
            barred[list(away[layer])] = True
            self._barred[layer] = barred
            self._consumers[layer] = Consumers(units, metric, w, away[layer])
            self._costs[layer] = (
                self._consumers[layer].costs()
                if choice == "greedy"
                else magnitudes(network, units, w)
            )

    def cheapest(self, layer: str) -> float:
        """Return the cost of a layer's cheapest candidate; infinity without candidates."""
        return float(torch.where(self._barred[layer], torch.inf, self._costs[layer]).min())

    def take(self, layer: str) -> int:
        """Remove the cheapest candidate of a layer and return it."""
        unit = int(torch.where(self._barred[layer], torch.inf, self._costs[layer]).argmin())
        self._barred[layer][unit] = True
        self._consumers[layer].remove(unit)
        if self._choice == "greedy":
            self._costs[layer] = self._consumers[layer].costs()
        return unit

    def compensated(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights with the consumers' compensation for removed units."""
        found = w.clone()
        for consumers in self._consumers.values():
            consumers.write(found)
        return found


def _reduce(
    removal: Removal,
    away: dict[str, list[int]],
    candidates: _Candidates,
    first: Mapping[str, int],
    level: float,
) -> None:
    """Remove units in ascending order of cost per saved size until the limit is met."""
    assert removal.size is not None
    start = removal.size(first)
    wanted = start + level * (removal.limit - start)
    counts = {layer: len(found) for layer, found in away.items()}
    now = removal.size(counts)
    while now > wanted:
        prices = {}
        for layer, units in removal.units.items():
            if counts[layer] + 1 < units.count:
                saved = now - removal.size({**counts, layer: counts[layer] + 1})
                prices[layer] = candidates.cheapest(layer) / saved if saved > 0 else float("inf")
        layer = min(prices, key=lambda name: prices[name], default="")
        if prices.get(layer, float("inf")) == float("inf"):
            raise _too_small(removal, now)
        away[layer].append(candidates.take(layer))
        counts[layer] += 1
        now = removal.size(counts)


def _too_small(removal: Removal, left: int) -> OptionError:
    return OptionError(
        f"expected a size that leaves a unit in every layer, got {removal.limit}, and removing all "
        f"candidates leaves {left}; ask for less"
    )
