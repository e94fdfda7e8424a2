"""The Kronecker-weighted mean against a dense solution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from unit_networks import kronecker_case

from geomerge import KroneckerMetric, Network
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.factor import Factor, decompose
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.mean import KroneckerMean

COUNT = 3


@pytest.fixture(scope="module")
def case() -> tuple[list[KroneckerMetric], list[Tensor]]:
    return kronecker_case(COUNT)


def dense(metric: KroneckerMetric) -> Tensor:  # (n, n)
    return torch.stack([metric.mv(e) for e in torch.eye(metric.n).double()])


def test_it_solves_the_sum_of_kronecker_products(
    case: tuple[list[KroneckerMetric], list[Tensor]],
) -> None:
    metrics, points = case
    anchor = torch.stack(points).mean(dim=0)
    found = KroneckerMean(metrics, points, anchor).at(0.1)
    mean = KroneckerMean(metrics, points, anchor).mean
    mu = torch.full_like(anchor, float("inf"))
    for layer in mean.layers:
        spans = [layer.weight, layer.bias] if layer.bias is not None else [layer.weight]
        size = sum(s.stop - s.start for s in spans)
        for span in spans:
            mu[span] = 0.1 * layer.trace / size
    mu[mu.isinf()] = float(mu.min())
    total = sum((dense(g) for g in metrics), torch.zeros(())) + COUNT * mu.diag()
    right = sum((g.mv(w) for g, w in zip(metrics, points, strict=True)), torch.zeros(()))
    assert torch.allclose(found, torch.linalg.solve(total, right + COUNT * mu * anchor), atol=2e-4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_truncated_factors_are_isotropic_outside_of_their_joint_eigenspace(
    rank: int, case: tuple[list[KroneckerMetric], list[Tensor]]
) -> None:
    metrics, points = case
    few = [_of_rank(metric, rank) for metric in metrics]
    anchor = torch.stack(points).mean(dim=0)
    solver = KroneckerMean(few, points, anchor, [2.0, 1.0, 0.5])
    found = solver.at(0.1)
    whole = [replace(g, layers=tuple(_whole(layer) for layer in g.layers)) for g in few]
    expected = KroneckerMean(whole, points, anchor, [2.0, 1.0, 0.5]).at(0.1)
    assert torch.allclose(found, expected, atol=2e-3 * float((expected - anchor).norm()))
    assert sum(solver.drifts(found)) < sum(solver.drifts(anchor))


@pytest.mark.parametrize("damping", [1e-1, 1e-3, 1e-5])
def test_rounding_outside_of_the_joint_eigenspace_is_not_magnified(damping: float) -> None:
    """In float32, where tails and damping are far below the leading eigenvalues."""
    torch.manual_seed(0)
    rows, columns, rank = 30, 50, 6

    def factor(size: int) -> Factor:
        vectors = torch.linalg.qr(torch.randn(size, rank))[0]
        return Factor(vectors, torch.logspace(0, -3, rank), 1e-5)

    def layer() -> KroneckerLayer:
        place = slice(0, rows * columns)
        return KroneckerLayer("layer", place, None, factor(columns), factor(rows))

    n = rows * columns
    metrics = [KroneckerMetric(n, (layer(),), (), torch.zeros(0)) for _ in range(2)]
    points = list(torch.randn(2, n))
    anchor = torch.stack(points).mean(dim=0)
    solver = KroneckerMean(metrics, points, anchor)
    found = solver.at(damping)
    mu = damping * solver.mean.layers[0].trace / n
    parts = [
        torch.kron(g.layers[0].outputs.dense().double(), g.layers[0].inputs.dense().double())
        for g in metrics
    ]
    total = parts[0] + parts[1] + 2 * mu * torch.eye(n).double()
    right = sum(g @ w.double() for g, w in zip(parts, points, strict=True))
    expected = torch.linalg.solve(total, right + 2 * mu * anchor.double()).float()
    drifts = [sum(solver.drifts(w)) for w in (found, expected, anchor)]
    assert drifts[0] < drifts[1] + 1e-4 * drifts[2]


def _of_rank(metric: KroneckerMetric, rank: int) -> KroneckerMetric:
    layers = [
        replace(layer, inputs=layer.inputs.truncated(rank), outputs=layer.outputs.truncated(rank))
        for layer in metric.layers
    ]
    return replace(metric, layers=tuple(layers))


def _whole(layer: KroneckerLayer) -> KroneckerLayer:
    return replace(
        layer, inputs=decompose(layer.inputs.dense()), outputs=decompose(layer.outputs.dense())
    )


def test_networks_that_are_equal_stay_as_they_are(
    case: tuple[list[KroneckerMetric], list[Tensor]],
) -> None:
    metrics, points = case
    found = KroneckerMean(metrics, [points[0]] * COUNT, points[0]).at(0.1)
    assert torch.allclose(found, points[0])


def test_predicted_drift_falls_with_the_damping(
    case: tuple[list[KroneckerMetric], list[Tensor]],
) -> None:
    metrics, points = case
    anchor = torch.stack(points).mean(dim=0)
    solver = KroneckerMean(metrics, points, anchor)

    def drift(w: Tensor) -> float:
        return sum(g.inner(w - p, w - p) for g, p in zip(metrics, points, strict=True))

    drifts = [drift(solver.at(damping)) for damping in (1e-3, 1e-1, 10.0)]
    assert drifts == sorted(drifts)
    assert drifts[-1] < drift(anchor)


def test_a_scale_pulls_toward_a_network(case: tuple[list[KroneckerMetric], list[Tensor]]) -> None:
    metrics, points = case
    anchor = torch.stack(points).mean(dim=0)

    def drift(scale: float) -> float:
        w = KroneckerMean(metrics, points, anchor, [scale, 1.0, 1.0]).at(0.01)
        return metrics[0].inner(w - points[0], w - points[0])

    assert drift(4.0) < drift(1.0) < drift(0.25)


def test_layers_that_are_done_wait_for_the_others() -> None:
    """In float32, from few inputs, one layer takes many more products than another."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(60, 40), nn.Tanh(), nn.Linear(40, 2))
    network = Network(module)
    points = [network.initial + 0.3 * torch.randn(network.n) for _ in range(COUNT)]
    scales = torch.logspace(-3, 1, 60)
    inputs = [torch.randn(15, 60) * scales for _ in range(COUNT)]
    pairs = zip(points, inputs, strict=True)
    metrics = [estimate_kronecker(network, w, [x]) for w, x in pairs]
    anchor = torch.stack(points).mean(dim=0)
    found = KroneckerMean(metrics, points, anchor).at(0.1)

    def drift(w: Tensor) -> float:
        return sum(g.inner(w - p, w - p) for g, p in zip(metrics, points, strict=True))

    assert drift(found) < drift(anchor)
    assert float((found - anchor).norm()) < float((points[0] - anchor).norm())
