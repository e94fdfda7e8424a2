"""Evaluation of pruned networks and one-shot baselines."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.evaluation.accuracy import accuracy
from geomerge.metrics import EuclideanMetric, Metric
from geomerge.paths.path import WeightPath
from geomerge.pruning.goals import goal_stages
from geomerge.pruning.masks import prunable, sparsity, zeros
from geomerge.pruning.options import GoalOptions, RankingOptions
from geomerge.pruning.problem import PruneProblem
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.walk import soft_pull, with_zeros
from geomerge.walks.plane import Prescription, Stage

__all__ = [
    "PruneCurvePoint",
    "PruneRow",
    "baseline_rows",
    "curve_of",
    "row_of",
]

_PULLED = 2_000_000  # number of weights above which a soft pull takes minutes


@dataclass(frozen=True)
class PruneRow:
    """Measurements of one network.

    Attributes:
        name: Name of the network in tables.
        zeros: Share of zeros among the prunable weights.
        drift: Mean functional change from the dense network, on held-out inputs.
        agreement: Share of held-out inputs with the dense network's label, in [0, 1].
        select: Accuracy on the selection split, in [0, 1].
        test: Accuracy on the test split.
    """

    name: str
    zeros: float
    drift: float
    agreement: float
    select: float
    test: float


@dataclass(frozen=True)
class PruneCurvePoint:
    """Measurements of a stored point of a path.

    Attributes:
        t: Share of the path's length.
        zeros: Share of zeros among the prunable weights.
        removed: Number of removed units.
        drift: Mean functional change from the dense network, on held-out inputs.
        agreement: Share of held-out inputs with the dense network's label, in [0, 1].
        select: Accuracy on the same held-out inputs.
        naive: Accuracy of the dense network under the point's mask, without compensation.
    """

    t: float
    zeros: float
    removed: int
    drift: float
    agreement: float
    select: float
    naive: float


def row_of(
    problem: PruneProblem,
    name: str,
    w: Tensor,  # (n,)
) -> PruneRow:
    """Measure a network for reports, not for any choice."""
    whole = problem.selection.compare(w)
    return PruneRow(
        name,
        sparsity(w, prunable(problem.network)),
        problem.held_out.compare(w).drift,
        whole.agreement,
        whole.accuracy,
        accuracy(problem.network, w, problem.task.test),
    )


def curve_of(problem: PruneProblem, path: WeightPath) -> list[PruneCurvePoint]:
    """Measure the stored points of a path on a sample of the selection split."""
    network, held_out = problem.network, problem.held_out
    places = prunable(network)
    curve = []
    for t in path.ts:
        w = path.at(t).to(problem.weights.device)
        gone = removed_units(network, w, problem.units) if problem.units else {}
        naive = torch.where(zeros(w, places), 0.0, problem.weights)
        change = held_out.compare(w)
        curve.append(
            PruneCurvePoint(
                t,
                sparsity(w, places),
                sum(map(len, gone.values())),
                change.drift,
                change.agreement,
                change.accuracy,
                held_out.compare(naive).accuracy,
            )
        )
    return curve


def baseline_rows(
    problem: PruneProblem, goal: GoalOptions, ranking: RankingOptions, pull: bool
) -> list[PruneRow]:
    """Measure the dense network, and networks pruned to the same goal in one stage.

    Args:
        problem: Network.
        goal: Weights or units to remove.
        ranking: Order of the removal in the walk.
        pull: Whether to include the soft pull.
    """
    greedy = replace(ranking, choice="greedy", budget=None)
    magnitude = replace(greedy, saliency="magnitude", choice="magnitude")

    def last_stage(order: RankingOptions) -> Stage:
        return goal_stages(problem, goal, order, 1)[-1]

    with problem.cost.free():  # not part of the walk's cost
        metric = problem.metric_at(problem.weights)
        smallest = _at_once(problem, last_stage(magnitude), EuclideanMetric())
        rows = [
            row_of(problem, "dense", problem.weights),
            row_of(problem, "one-shot magnitude", smallest),
        ]
        if metric.isotropic:
            return rows
        cheapest = _at_once(problem, last_stage(greedy), metric)
        rows.append(row_of(problem, "one-shot, second-order choice", cheapest))
        if pull and problem.network.n <= _PULLED:

            def plane(w: Tensor, metric: Metric) -> Prescription:
                return last_stage(greedy)(w, metric)

            *_, end = soft_pull(problem, problem.weights, plane, lambda w: metric)
            rows.append(row_of(problem, "soft pull, then the mask", end.weights))
    return rows


def _at_once(problem: PruneProblem, stage: Stage, metric: Metric) -> Tensor:  # (n,)
    w = problem.weights
    wanted = with_zeros(problem, w, stage)(w, metric)
    return problem.settle(torch.where(wanted.free, w, wanted.target))
