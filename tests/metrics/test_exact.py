from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.errors import NumericalError
from geomerge.metrics import exact_metric, output_map
from geomerge.metrics.exact import lanczos
from geomerge.metrics.linearisation import Linearisation
from geomerge.networks.batches import Batch
from geomerge.steps import damped_step, trust_region_step
from geomerge.testing import dense_metric

Case = tuple[Network, Batch]


def test_linearisation_agrees_with_central_differences(kind: Case) -> None:
    network, x = kind
    w = network.initial
    u = torch.randn(network.n, dtype=torch.float64)  # moves running statistics too
    j = Linearisation(network, w, x, "hellinger")
    moved = [output_map(network.outputs(w + s * 1e-6 * u, x), "hellinger") for s in (1, -1)]
    pushed = j.push(u)
    torch.testing.assert_close(pushed, (moved[0] - moved[1]) / 2e-6, rtol=1e-5, atol=1e-6)
    p = torch.randn_like(pushed)
    assert float(u @ j.pull(p)) == pytest.approx(float((pushed * p).sum()), rel=1e-9)


@pytest.mark.parametrize("beta", [1e-3, 1.0, 100.0])
def test_steps_satisfy_the_optimality_conditions(case: Case, beta: float) -> None:
    network, x = case
    metric = exact_metric(network, network.initial, [x], "logits")
    g = dense_metric(network, network.initial, x, "logits")
    v = torch.randn(network.n, dtype=torch.float64)
    step = trust_region_step(metric, v, 0.1, beta)
    residual = 2 * (g @ step.tangent + step.damping * step.tangent) - beta * v
    assert float(residual.norm()) <= 1e-6 * beta * float(v.norm())
    assert float(step.tangent.norm()) <= 0.1 * (1 + 1e-6)
    assert step.predicted == pytest.approx(float(step.tangent @ g @ step.tangent), rel=1e-6)
    damped = damped_step(metric, v, 0.01, 1e9).tangent
    torch.testing.assert_close(g @ damped + 0.01 * damped, 0.01 * v)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_short_krylov_space_knows_its_residual(case: Case, rank: int) -> None:
    network, x = case
    metric = exact_metric(network, network.initial, [x], "logits", rank)
    g = dense_metric(network, network.initial, x, "logits")
    v = torch.randn(network.n, dtype=torch.float64)
    krylov = metric.krylov(v)
    coordinates = krylov.coordinates()
    for damping in (1e-3, 1.0):
        solved = coordinates.compose(coordinates.scaled(lambda s: 1 / (s + damping)))  # noqa: B023
        residual = float((g @ solved + damping * solved - v).norm())
        assert krylov.residual(damping) == pytest.approx(residual, rel=1e-9)


def test_lanczos_stops_where_the_space_is_invariant() -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 50, dtype=torch.float64)
    v = torch.randn(50, dtype=torch.float64)
    krylov = lanczos(lambda u: rows.T @ (rows @ u), v, 40)
    assert len(krylov.values) == 4  # three eigenvectors, and what is orthogonal to them
    assert krylov.residual(0.1) < 1e-12
    assert len(lanczos(lambda u: u, torch.zeros(50), 40).values) == 1


def test_weights_without_influence_cost_nothing() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    network = Network(Idle())
    metric = exact_metric(network, network.initial, [torch.randn(5, 3)])
    u = torch.randn(network.n)
    u[network.slices["used.weight"]] = 0
    u[network.slices["used.bias"]] = 0
    assert metric.inner(u, u) == 0
    assert not metric.mv(u).any()


def test_numbers_that_are_not_finite_are_errors() -> None:
    network = Network(nn.Linear(3, 2))
    with pytest.raises(NumericalError, match="no inputs"):
        exact_metric(network, network.initial, [])
    with pytest.raises(NumericalError, match="outputs are not finite"):
        exact_metric(network, network.initial, [torch.full((1, 3), float("nan"))])
    metric = exact_metric(network, network.initial, [torch.ones(1, 3)])
    with pytest.raises(NumericalError, match="product with the metric is not finite"):
        metric.coordinates(torch.full((network.n,), float("inf")))
