"""Stages that let units go at rates: a quadratic program says who moves now and who waits.

A unit goes as the columns that read it shrink; once they are zero, so is the rest of it. Between
stages the columns of half-gone units stand still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from geomerge.errors import OptionError
from geomerge.metrics import Metric
from geomerge.networks.network import Network
from geomerge.pruning.obs import Consumers
from geomerge.pruning.removal import Removal
from geomerge.pruning.schedule import cubic_schedule
from geomerge.steps import RateProgram, group_rates
from geomerge.walks.constraints import Constraint
from geomerge.walks.plane import Prescription, Stage
from geomerge.walks.state import WalkState

__all__ = ["MOST_RATES", "rate_stages"]

MOST_RATES = 300  # units in one program, which takes a second
_GONE = 1e-6  # of a unit is as good as nothing


def rate_stages(
    network: Network,
    removal: Removal,
    gone: Mapping[str, Sequence[int]],
    stages: int,
    kept: Sequence[Constraint] = (),
    allowed: float = float("inf"),
    state: WalkState | None = None,
) -> list[Stage]:
    r"""Return stages that remove units at the rates that cost least.

    At each stage :math:`\min_c c'Qc/2` with :math:`0 \le c \le 1`, progress
    :math:`\sum_j a_j c_j \ge \tau` and, softly, :math:`D_q + b_q'c \le \delta`, where Q counts
    every interaction between compensated units of a layer and D_q is what a class has lost.

    Args:
        network: The network.
        removal: What shall go, by counts.
        gone: By :attr:`Units.layer`, the units that are zero where the walk starts.
        stages: How many.
        kept: What may not get worse: one for each class.
        allowed: By how much it may.
        state: Where the stages remember what is left of each unit; of an interrupted walk, what
            was left before.

    Returns:
        The stages, to be called in order. The last one removes the units that went farthest, as
        many as wanted, and leaves the others as they are.

    Raises:
        OptionError: If there are more units than a program can hold, or a size was given.
    """
    if removal.counts is None:
        raise OptionError(
            "--choose rates needs numbers of units, got a size; give --remove, or --choose greedy"
        )
    total = sum(len(removal.candidates[layer]) for layer in removal.counts)
    if total > MOST_RATES:
        raise OptionError(
            f"--choose rates takes at most {MOST_RATES} units to choose from, got {total}; use "
            "--choose greedy"
        )
    rates = _Rates(network, removal, gone, kept, allowed, state or WalkState())
    levels = cubic_schedule(0.0, 1.0, stages)
    return [*(partial(rates.shrink, level) for level in levels[:-1]), rates.finish]


class _Rates:
    """How much of each unit is left, from stage to stage."""

    def __init__(
        self,
        network: Network,
        removal: Removal,
        gone: Mapping[str, Sequence[int]],
        kept: Sequence[Constraint],
        allowed: float,
        state: WalkState,
    ) -> None:
        self._network, self._removal, self._gone = network, removal, gone
        self._kept, self._allowed = kept, allowed
        self._candidates = {
            layer: torch.tensor(list(found), dtype=torch.int64)
            for layer, found in removal.candidates.items()
        }
        self._left = {
            layer: torch.ones(units.count, dtype=torch.float64)
            for layer, units in removal.units.items()
        }
        for layer, found in gone.items():
            self._left[layer][list(found)] = 0.0
        self._known = state.values
        for layer, before in self._known.get("left", {}).items():
            self._left[layer] = torch.tensor(before, dtype=torch.float64)

    def shrink(
        self,
        level: float,
        w: Tensor,  # (n,)
        metric: Metric,
    ) -> Prescription:
        """Let candidates go at the rates of the program."""
        factors, made_up, prices = self._advance(level, w, metric)
        return self._prescription(w, factors, 1 - level, made_up, prices)

    def finish(
        self,
        w: Tensor,  # (n,)
        metric: Metric,
    ) -> Prescription:
        """Remove the units that go farthest; the others stay as they are."""
        *_, prices = self._advance(1.0, w, metric)
        made_up = w.clone()
        for layer, count in (self._removal.counts or {}).items():
            index, left = self._candidates[layer], self._left[layer]
            order = index[left[index].sort(stable=True).indices]
            left[order[:count]], left[order[count:]] = 0.0, 1.0
            readers = Consumers(self._removal.units[layer], metric, w, self._gone.get(layer, ()))
            for unit in order[:count].tolist():
                readers.remove(unit)
            readers.write(made_up)
        return self._prescription(w, {}, 0.0, made_up, prices)

    def _advance(
        self,
        level: float,
        w: Tensor,  # (n,)
        metric: Metric,
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
        """Solve the programs of a stage.

        Returns:
            What stays of each unit, the weights that make up for it, and the prices of budgets.
        """
        factors, prices = {}, dict.fromkeys((one.name for one in self._kept), 0.0)
        made_up = w.clone()
        rows = [one.row(w) for one in self._kept]
        room = torch.tensor([self._allowed - d for d, _ in rows], dtype=torch.float64)
        for layer, count in (self._removal.counts or {}).items():
            index, left = self._candidates[layer], self._left[layer]
            missing = level * count - float((1 - left[index]).sum())
            if missing <= _GONE:
                continue
            away = (left == 0).nonzero()[:, 0].tolist()
            readers = Consumers(self._removal.units[layer], metric, w, away)
            program = readers.program()
            slopes = torch.stack([readers.slopes(g)[index] for _, g in rows]) if rows else None
            found = group_rates(
                RateProgram(program.hessian[index][:, index], program.linear[index]),
                left[index],
                missing,
                rows=slopes,
                limits=room if rows else None,
            )
            if slopes is not None:  # what is left of the budgets for the next layer
                room = room - slopes @ found.rates.detach()
            rates = torch.zeros_like(left).index_copy(0, index, found.rates.detach())
            readers.shrink(rates)
            readers.write(made_up)
            factors[layer] = 1 - rates
            left *= factors[layer]
            left[left < _GONE] = 0.0
            for one, price in zip(self._kept, found.prices.tolist(), strict=True):
                prices[one.name] = max(prices[one.name], price)
        return factors, made_up, {name: price for name, price in prices.items() if price > 0}

    def _prescription(
        self,
        w: Tensor,  # (n,)
        factors: Mapping[str, Tensor],
        remaining: float,
        made_up: Tensor,  # (n,)
        prices: Mapping[str, float],
    ) -> Prescription:
        self._known["left"] = {layer: left.tolist() for layer, left in self._left.items()}
        free = self._network.trained
        target = w.clone()
        for layer, units in self._removal.units.items():
            left = self._left[layer]
            for unit in ((left > 0) & (left < 1)).nonzero()[:, 0].tolist():
                places = units.consumers([unit]).to(w.device)
                free[places] = False
                if layer in factors:
                    target[places] *= float(factors[layer][unit])
        # Last, for what is half gone of one layer may be read by what is gone of another.
        for layer, units in self._removal.units.items():
            places = units.places((self._left[layer] == 0).nonzero()[:, 0].tolist()).to(w.device)
            free[places], target[places] = False, 0.0
        return Prescription(target, free, remaining, made_up, prices)
