"""Stages that remove units: filters and neurons, some of each layer or as many as a size wants."""

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
    """What shall go.

    Attributes:
        units: The sets concerned, by :attr:`Units.layer`.
        candidates: Of each set, the units that may go.
        counts: Of each set, how many of them go; None where a size decides.
        size: From how many units of each set are gone to what is left, such as FLOPs; None where
            counts decide.
        limit: What may be left of the size.
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
    """Return stages that set units to zero, the cheapest first.

    Args:
        network: The network.
        removal: What shall go.
        gone: By :attr:`Units.layer`, the units that are zero where the walk starts.
        stages: How many, at most one for each unit that goes.
        choice: ``"greedy"``: one after the other, each the cheapest beside those gone and
            compensated; ``"magnitude"``: the smallest L1 norm.
        state: Where the stages remember what went; of an interrupted walk, what went before.

    Returns:
        The stages, to be called in order.

    Raises:
        OptionError: By a stage, if the size cannot be reached with a unit left in every layer.
    """
    known = (WalkState() if state is None else state).values
    first = {layer: len(gone.get(layer, ())) for layer in removal.units}
    away: dict[str, list[int]] = known.setdefault(
        "away", {layer: list(gone.get(layer, ())) for layer in removal.units}
    )

    def stage(level: float) -> Stage:
        def at(w: Tensor, metric: Metric) -> Prescription:
            field = _Field(network, removal, away, w, metric, choice)
            if removal.counts is None:
                _reduce(removal, away, field, first, level)
            else:
                for layer, count in removal.counts.items():
                    while len(away[layer]) < first[layer] + round(level * count):
                        away[layer].append(field.take(layer))
            zero = torch.zeros(network.n, dtype=torch.bool)
            for layer, found in away.items():
                zero[removal.units[layer].places(found)] = True
            zero = zero.to(w.device)
            target = torch.where(zero, 0.0, w)
            return Prescription(target, network.trained & ~zero, 1 - level, field.made_up(w))

        return at

    total = stages if removal.counts is None else sum(removal.counts.values())
    return [stage(level) for level in cubic_schedule(0.0, 1.0, min(stages, total))]


class _Field:
    """The units that may still go, and what each costs now."""

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
        self._readers: dict[str, Consumers] = {}
        self._barred: dict[str, Tensor] = {}
        self._costs: dict[str, Tensor] = {}
        for layer, units in removal.units.items():
            barred = torch.ones(units.count, dtype=torch.bool)
            barred[list(removal.candidates[layer])] = False
            barred[list(away[layer])] = True
            self._barred[layer] = barred
            self._readers[layer] = Consumers(units, metric, w, away[layer])
            self._costs[layer] = (
                self._readers[layer].costs()
                if choice == "greedy"
                else magnitudes(network, units, w)
            )

    def cheapest(self, layer: str) -> float:
        """Return what the cheapest unit of a layer costs, infinity where none may go."""
        return float(torch.where(self._barred[layer], torch.inf, self._costs[layer]).min())

    def take(self, layer: str) -> int:
        """Remove the cheapest unit of a layer and return it."""
        unit = int(torch.where(self._barred[layer], torch.inf, self._costs[layer]).argmin())
        self._barred[layer][unit] = True
        self._readers[layer].remove(unit)
        if self._choice == "greedy":
            self._costs[layer] = self._readers[layer].costs()
        return unit

    def made_up(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights in which the layers that read make up for the units taken."""
        found = w.clone()
        for readers in self._readers.values():
            readers.write(found)
        return found


def _reduce(
    removal: Removal,
    away: dict[str, list[int]],
    field: _Field,
    first: Mapping[str, int],
    level: float,
) -> None:
    """Remove the units that cost least for what they save until the size is small enough."""
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
                prices[layer] = field.cheapest(layer) / saved if saved > 0 else float("inf")
        layer = min(prices, key=lambda name: prices[name], default="")
        if prices.get(layer, float("inf")) == float("inf"):
            raise OptionError(
                f"expected a size that leaves a unit in every layer, got one of {removal.limit}; "
                f"{now} are left without all that can go: ask for less"
            )
        away[layer].append(field.take(layer))
        counts[layer] += 1
        now = removal.size(counts)
