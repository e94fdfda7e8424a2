from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import KroneckerMetric, Network
from geomerge.metric import output_map
from geomerge.metric.estimate import estimate_kronecker
from geomerge.metric.factor import factorise
from geomerge.metric.kronecker import KroneckerLayer
from geomerge.testing import dense_kronecker, dense_metric

Case = tuple[Network, torch.Tensor]


def truncated(metric: KroneckerMetric, rank: int) -> KroneckerMetric:
    layers = tuple(
        KroneckerLayer(
            x.name, x.weight, x.bias, x.inputs.truncated(rank), x.outputs.truncated(rank)
        )
        for x in metric.layers
    )
    return KroneckerMetric(metric.n, layers, metric.rest, metric.diagonal, metric.rest_names)


@pytest.mark.parametrize("output", ["logits", "hellinger"])
def test_layer_blocks_are_exact_for_one_input(output: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.Tanh())
    network = Network(net.double())
    x = torch.randn(1, 5, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], output)
    truth = dense_metric(network, network.initial, x, output)
    index = torch.arange(network.n)
    for layer in metric.layers:
        at = layer.matrix(index).reshape(-1)
        got = dense_kronecker(metric)[at][:, at]
        torch.testing.assert_close(got, truth[at][:, at], rtol=1e-9, atol=1e-12)


def test_conv_block_is_exact_for_one_input_and_one_position() -> None:
    torch.manual_seed(1)
    network = Network(nn.Sequential(nn.Conv2d(2, 3, 4), nn.Flatten()).double())
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], "logits")
    truth = dense_metric(network, network.initial, x)
    torch.testing.assert_close(dense_kronecker(metric), truth, rtol=1e-9, atol=1e-12)


def test_rest_has_the_exact_diagonal_running_statistics_too(case: Case) -> None:
    network, x = case
    metric = estimate_kronecker(network, network.initial, [x[:3], x[3:]], "hellinger")
    if not metric.rest:
        pytest.skip("every weight lies in a covered layer")
    at = torch.cat([torch.arange(network.n)[s] for s in metric.rest])

    def moved(i: int) -> torch.Tensor:  # torch gives no derivative by running statistics
        step = torch.zeros(network.n, dtype=torch.float64)
        step[i] = 1e-5
        phi = [
            output_map(network.outputs(network.initial + s * step, x), "hellinger") for s in (1, -1)
        ]
        return ((phi[0] - phi[1]) / 2e-5).square().sum(1).mean()

    truth = torch.stack([moved(i) for i in at.tolist()])
    torch.testing.assert_close(metric.diagonal, truth, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("rank", [100, 2])
def test_products_agree_with_the_dense_matrix(case: Case, rank: int) -> None:
    network, x = case
    metric = truncated(estimate_kronecker(network, network.initial, [x], "hellinger"), rank)
    g = dense_kronecker(metric)
    u, v = torch.randn(2, network.n, dtype=torch.float64)
    assert metric.inner(u, v) == pytest.approx(float(u @ g @ v), rel=1e-9)
    assert metric.inner(u, v) == pytest.approx(metric.inner(v, u), rel=1e-9)
    assert metric.inner(u, u) >= 0
    spectrum = metric.spectrum(v)
    torch.testing.assert_close(spectrum.compose(spectrum.parts), v)
    assert spectrum.sum(torch.ones_like) == pytest.approx(float(v @ v), rel=1e-9)
    solved = spectrum.compose(spectrum.scaled(lambda s: 1 / (s + 0.1)))
    torch.testing.assert_close(g @ solved + 0.1 * solved, v)


def test_metric_is_the_mean_over_inputs_however_they_are_batched(case: Case) -> None:
    network, x = case
    one = estimate_kronecker(network, network.initial, [x], "logits")
    two = estimate_kronecker(network, network.initial, [x[:2], x[2:]], "logits")
    torch.testing.assert_close(dense_kronecker(one), dense_kronecker(two))


def test_metric_scales_with_the_square_of_the_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=torch.float64)
    body = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * self.body(x)

    plain, scaled = Network(body), Network(Scaled())
    one = estimate_kronecker(plain, plain.initial, [x], "logits")
    two = estimate_kronecker(scaled, scaled.initial, [x], "logits")
    v = torch.randn(plain.n, dtype=torch.float64)
    assert two.inner(v, v) == pytest.approx(9 * one.inner(v, v), rel=1e-9)


def test_many_outputs_use_probes_with_the_right_expectation() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(6, 40)).double())
    x = torch.randn(400, 6, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], "logits")
    (layer,) = metric.layers
    torch.testing.assert_close(
        layer.outputs.dense(), torch.eye(40).double(), atol=0.1, rtol=0
    )  # d logits = identity, 3200 probes


def test_truncation_keeps_the_trace() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(9, 30, dtype=torch.float64)
    factor = factorise(matrix @ matrix.T)
    small = factor.truncated(4).truncated(2)
    assert small.trace == pytest.approx(factor.trace, rel=1e-12)
    assert float(small.dense().trace()) == pytest.approx(factor.trace, rel=1e-12)
    torch.testing.assert_close(factor.dense(), matrix @ matrix.T)


def test_activations_in_place_do_not_change_the_metric() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 5, dtype=torch.float64)
    found = []
    for inplace in (False, True):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(5, 6), nn.ReLU(inplace), nn.Linear(6, 6), nn.ReLU(inplace), nn.Linear(6, 3)
        )
        network = Network(net.double())
        found.append(dense_kronecker(estimate_kronecker(network, network.initial, [x])))
    torch.testing.assert_close(found[0], found[1])
