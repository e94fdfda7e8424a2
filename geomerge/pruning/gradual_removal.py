"""Gradual removal of units at rates that a quadratic program determines for each stage.

A unit is removed by shrinking its columns in its consumers. Once these are zero, its producing
weights are set to zero as well. Columns of partly removed units are fixed between stages.
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

MOST_RATES = 300  # largest number of units in one program, which takes about a second
_GONE = 1e-6  # remaining share of a unit below which it counts as removed


def rate_stages(
    network: Network,
    removal: Removal,
    gone: Mapping[str, Sequence[int]],
    stages: int,
    constraints: Sequence[Constraint] = (),
    bound: float = float("inf"),
    state: WalkState | None = None,
) -> list[Stage]:
    r"""Return stages that remove units at optimal rates.

    Each stage solves :math:`\min_c c'Qc/2` with :math:`0 \le c \le 1`, progress
    :math:`\sum_j a_j c_j \ge \tau` and the soft constraints :math:`D_q + b_q'c \le \delta`, where Q
    contains all interactions between compensated units of a layer and D_q is the loss of class q.

    Args:
        network: Network.
        removal: Goal of the removal, by counts.
        gone: Units that are zero at the start, by :attr:`Units.layer`.
        stages: Number of stages.
        constraints: Bounded losses D_q, one for each class.
        bound: Bound delta on each loss.
        state: State in which the stages store the remaining share of each unit, or that of an
            interrupted walk.

    Returns:
        Stages, to be called in order. The last one removes the units with the smallest remaining
        shares and frees the columns of the others.

    Raises:
        OptionError: If there are more than :data:`MOST_RATES` units, or a size is the goal.
    """
    if removal.counts is None:
        raise OptionError(
            "`choice` rates needs numbers of units, got a size; give `remove`, or `choice` greedy"
        )
    total = sum(len(removal.candidates[layer]) for layer in removal.counts)
    if total > MOST_RATES:
        raise OptionError(
            f"`choice` rates takes at most {MOST_RATES} units to choose from, got {total}; use "
            "`choice` greedy"
        )
    rates = _GradualRemoval(network, removal, gone, constraints, bound, state or WalkState())
    levels = cubic_schedule(0.0, 1.0, stages)
    return [*(partial(rates.shrink, level) for level in levels[:-1]), rates.finish]


class _GradualRemoval:
    """Remaining shares of units over the stages."""

    def __init__(
        self,
        network: Network,
        removal: Removal,
        gone: Mapping[str, Sequence[int]],
        constraints: Sequence[Constraint],
        bound: float,
        state: WalkState,
    ) -> None:
        self._network, self._removal, self._gone = network, removal, gone
        self._constraints, self._bound = constraints, bound
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
        """Shrink the candidates at the optimal rates."""
        factors, compensated, prices = self._advance(level, w, metric)
        return self._prescription(w, factors, 1 - level, compensated, prices)

    def finish(
        self,
        w: Tensor,  # (n,)
        metric: Metric,
    ) -> Prescription:
        """Remove the units with the smallest remaining shares; free the others."""
        *_, prices = self._advance(1.0, w, metric)
        compensated = w.clone()
        for layer, count in (self._removal.counts or {}).items():
            index, left = self._candidates[layer], self._left[layer]
            order = index[left[index].sort(stable=True).indices]
            left[order[:count]], left[order[count:]] = 0.0, 1.0
            consumers = Consumers(self._removal.units[layer], metric, w, self._gone.get(layer, ()))
            for unit in order[:count].tolist():
                consumers.remove(unit)
            consumers.write(compensated)
        return self._prescription(w, {}, 0.0, compensated, prices)

    def _advance(
        self,
        level: float,
        w: Tensor,  # (n,)
        metric: Metric,
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
        """Solve the programs of a stage.

        Returns:
            Remaining shares of units, weights with compensation, and shadow prices of constraints.
        """
        factors, prices = {}, dict.fromkeys((one.name for one in self._constraints), 0.0)
        compensated = w.clone()
        rows = [one.row(w) for one in self._constraints]
        room = torch.tensor([self._bound - d for d, _ in rows], dtype=torch.float64)
        for layer, count in (self._removal.counts or {}).items():
            index, left = self._candidates[layer], self._left[layer]
            missing = level * count - float((1 - left[index]).sum())
            if missing <= _GONE:
                continue
            away = (left == 0).nonzero()[:, 0].tolist()
            consumers = Consumers(self._removal.units[layer], metric, w, away)
            program = consumers.program()
            slopes = torch.stack([consumers.slopes(g)[index] for _, g in rows]) if rows else None
            found = group_rates(
                RateProgram(program.hessian[index][:, index], program.linear[index]),
                left[index],
                missing,
                rows=slopes,
                limits=room if rows else None,
            )
            if slopes is not None:  # the next layer may use the rest of the bounds
                room = room - slopes @ found.rates.detach()
            rates = torch.zeros_like(left).index_copy(0, index, found.rates.detach())
            consumers.shrink(rates)
            consumers.write(compensated)
            factors[layer] = 1 - rates
            left *= factors[layer]
            left[left < _GONE] = 0.0
            for one, price in zip(self._constraints, found.prices.tolist(), strict=True):
                prices[one.name] = max(prices[one.name], price)
        return factors, compensated, {name: price for name, price in prices.items() if price > 0}

    def _prescription(
        self,
        w: Tensor,  # (n,)
        factors: Mapping[str, Tensor],
        remaining: float,
        compensated: Tensor,  # (n,)
        prices: Mapping[str, float],
    ) -> Prescription:
        self._known["left"] = {layer: left.tolist() for layer, left in self._left.items()}
        free = self._network.movable
        target = w.clone()
        for layer, units in self._removal.units.items():
            left = self._left[layer]
            for unit in ((left > 0) & (left < 1)).nonzero()[:, 0].tolist():
                places = units.consumer_places([unit]).to(w.device)
                free[places] = False
                if layer in factors:
                    target[places] *= float(factors[layer][unit])
        # Last, since a removed unit of one layer can consume a partly removed unit of another.
        for layer, units in self._removal.units.items():
            places = units.places((self._left[layer] == 0).nonzero()[:, 0].tolist()).to(w.device)
            free[places], target[places] = False, 0.0
        return Prescription(target, free, remaining, compensated, prices)
