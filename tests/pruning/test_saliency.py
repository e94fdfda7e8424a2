from __future__ import annotations

import pytest
import torch

from geomerge import KroneckerMetric, Network
from geomerge.metrics import EuclideanMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.batches import Batch
from geomerge.pruning.masks import saliency
from geomerge.testing import dense_kronecker

Case = tuple[Network, Batch]
DAMPING = 1e-2


def measured(case: Case, rank_a: int = 100, rank_b: int = 100) -> KroneckerMetric:
    network, x = case
    metric = estimate_kronecker(network, network.initial, [x], "hellinger")
    layers = tuple(
        KroneckerLayer(
            one.name, one.weight, one.bias, one.inputs.truncated(rank_a),
            one.outputs.truncated(rank_b),
        )
        for one in metric.layers
    )  # fmt: skip
    return KroneckerMetric(metric.n, layers, metric.rest, metric.diagonal, metric.diagonal_only)


@pytest.mark.parametrize("ranks", [(100, 100), (3, 100), (100, 2), (2, 1)])
def test_the_diagonal_is_that_of_the_dense_function(case: Case, ranks: tuple[int, int]) -> None:
    metric = measured(case, *ranks)
    g = dense_kronecker(metric)
    values, vectors = torch.linalg.eigh(g)
    values = values.clamp(min=0)
    for function in (lambda s: s, lambda s: 1 / (s + DAMPING), lambda s: (s + DAMPING).sqrt()):
        truth = ((vectors * function(values)) @ vectors.T).diagonal()
        torch.testing.assert_close(metric.diagonal_of(function), truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ranks", [(100, 100), (3, 2)])
def test_obs_is_what_a_weight_costs_where_all_others_make_up_for_it(
    case: Case, ranks: tuple[int, int]
) -> None:
    network, _ = case
    metric = measured(case, *ranks)
    h = dense_kronecker(metric) + DAMPING * torch.eye(network.n, dtype=torch.float64)
    w = network.initial
    scores = saliency(w, metric, "obs", DAMPING)
    formula = w.square() / (2 * torch.linalg.inv(h).diagonal())
    torch.testing.assert_close(scores, formula, rtol=1e-8, atol=1e-12)
    for i in range(0, network.n, max(1, network.n // 7)):  # by least squares, one at a time
        others = torch.arange(network.n) != i
        d = -w[i]
        x = torch.linalg.solve(h[others][:, others], -h[others, i] * d)
        move = torch.zeros_like(w)
        move[i], move[others] = d, x
        assert float(move @ h @ move) / 2 == pytest.approx(float(scores[i]), rel=1e-7, abs=1e-12)


def test_obd_is_what_a_weight_costs_where_nothing_else_moves(case: Case) -> None:
    network, _ = case
    metric = measured(case)
    g = dense_kronecker(metric)
    w = network.initial
    scores = saliency(w, metric, "obd", DAMPING)
    moves = torch.diag(-w)
    truth = torch.einsum("ki,ij,kj->k", moves, g, moves) / 2
    torch.testing.assert_close(scores, truth, rtol=1e-9, atol=1e-14)
    # With compensation it costs no more, but for what the damping adds.
    bound = scores + DAMPING * w.square() / 2
    assert (saliency(w, metric, "obs", DAMPING) <= bound * (1 + 1e-9) + 1e-15).all()


def test_the_euclidean_metric_orders_by_magnitude(case: Case) -> None:
    network, _ = case
    w = network.initial
    order = w.abs().argsort(stable=True)
    for kind in ("obs", "obd", "magnitude"):
        scores = saliency(w, EuclideanMetric(), kind, DAMPING)
        assert torch.equal(scores.argsort(stable=True), order)
    scores = saliency(w, measured(case), "magnitude", DAMPING)
    assert torch.equal(scores, w.square())
