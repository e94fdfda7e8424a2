"""Choice of a walk's settings: damping, number of steps, and a stable learning rate."""

from __future__ import annotations

import torch

from geomerge.metrics import Metric, exact_metric
from geomerge.pruning.options import PruneWalkOptions
from geomerge.pruning.problem import PruneProblem
from geomerge.steps import precondition
from geomerge.walks.plane import PlaneWalkOptions

__all__ = ["plane_walk_options", "stable_rate"]

_SPREAD = (1.0, 1 / 3, 3.0)  # factors of the damping in consecutive walks
_INPUTS = 128
_BATCH = 32
_PRODUCTS = 8  # power iterations, for the largest eigenvalue to a few percent
_PASSES = 5  # cost of a product with G, in forward passes
_SHARE = 1.0  # learning rate times largest eigenvalue; steps diverge from 3.8 without noise


def plane_walk_options(
    problem: PruneProblem, options: PruneWalkOptions, number: int
) -> PlaneWalkOptions:
    """Return the settings of a walk: those of the options, and defaults for the network.

    Args:
        problem: Network.
        options: Options of the walk.
        number: Index of the walk from 0, which determines the default damping.
    """
    usual = PlaneWalkOptions()
    damping = (options.damping or usual.damping) * _SPREAD[number % len(_SPREAD)]
    rate = options.learning_rate
    if rate is None:
        stable = stable_rate(problem, problem.metric_at(problem.weights), damping)
        rate = min(usual.learning_rate, stable)
    return PlaneWalkOptions(damping, options.steps or usual.steps, rate, refresh=options.refresh)


def stable_rate(problem: PruneProblem, metric: Metric, damping: float) -> float:
    """Return a learning rate for stable steps, by power iteration at the dense network.

    Args:
        problem: Network.
        metric: Metric at the dense network.
        damping: Damping mu.
    """
    network, w = problem.network, problem.weights
    metric = metric.truncate(damping)
    inputs = problem.inputs.sample(_INPUTS, problem.seed)
    exact = exact_metric(network, w, inputs.batches(_BATCH), problem.output)
    generator = torch.Generator().manual_seed(problem.seed)
    v = torch.randn(network.n, generator=generator).to(w)
    v[network.n_parameters :] = 0
    largest = 0.0
    for _ in range(_PRODUCTS):
        u = precondition(metric, exact.mv(v), damping)
        largest = float(u.norm() / v.norm())
        v = u / u.norm()
    problem.cost.add(_PRODUCTS * _PASSES * len(inputs))
    return _SHARE / largest if largest > 0 else float("inf")
