from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.data import Inputs, Normalisation
from geomerge.errors import OptionError
from geomerge.metrics import METRICS, gram, gram_metric, kernel, measure_metric
from geomerge.metrics.kernel import gram_matrix
from geomerge.networks.batches import Batch
from geomerge.steps import damped_step, trust_region_step
from geomerge.testing import dense_jacobian, dense_metric

Case = tuple[Network, Batch]


@pytest.mark.parametrize("output", ["logits", "hellinger"])
@pytest.mark.parametrize("elements", [2**26, 1000])  # all derivatives at once, or few at a time
def test_gram_matrix_is_that_of_the_dense_jacobian(
    kind: Case, output: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = kind
    monkeypatch.setattr(kernel, "_ELEMENTS", elements)
    _, k = gram_matrix(network, network.initial, x, output)
    j = dense_jacobian(network, network.initial, x, output).flatten(0, 1)
    torch.testing.assert_close(k, j @ j.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [1e-3, 1.0, 100.0])
def test_steps_satisfy_the_optimality_conditions(case: Case, beta: float) -> None:
    network, x = case
    metric = gram_metric(network, network.initial, x, "logits")
    g = dense_metric(network, network.initial, x, "logits")
    v = torch.randn(network.n, dtype=torch.float64)
    step = trust_region_step(metric, v, 0.1, beta)
    residual = 2 * (g @ step.tangent + step.damping * step.tangent) - beta * v
    assert float(residual.norm()) <= 1e-6 * beta * float(v.norm())
    assert float(step.tangent.norm()) <= 0.1 * (1 + 1e-6)
    assert step.predicted == pytest.approx(float(step.tangent @ g @ step.tangent), rel=1e-6)
    damped = damped_step(metric, v, 0.01, 1e9).tangent
    torch.testing.assert_close(g @ damped + 0.01 * damped, 0.01 * v)


def test_float32_gives_what_float64_gives() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 10))
    x = torch.randn(30, 20)
    v = torch.randn(sum(p.numel() for p in net.parameters()))
    found = []
    for dtype in (torch.float32, torch.float64):
        network = Network(net.to(dtype))
        coordinates = gram_metric(network, network.initial, x.to(dtype)).coordinates(v.to(dtype))
        found.append(coordinates.compose(coordinates.scaled(lambda s: 1 / (s + 1e-4))).double())
    assert float((found[0] - found[1]).norm()) < 1e-5 * float(found[1].norm())


def test_every_metric_is_measured_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_ROWS", 900)
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    inputs = Inputs(torch.randn(600, 4), Normalisation((0.0,), (1.0,)))
    v = torch.randn(network.n)
    found = {
        name: measure_metric(network, network.initial, inputs, metric=name, output="softmax")
        for name in METRICS
    }
    assert {name: metric.name for name, metric in found.items()} == {name: name for name in METRICS}
    # The Gram form sees 300 of the 600 inputs.
    assert found["gram"].inner(v, v) == pytest.approx(found["exact"].inner(v, v), rel=0.2)
    with pytest.raises(OptionError, match="did you mean 'gram'"):
        measure_metric(network, network.initial, inputs, metric="grams")
