from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from geomerge import KroneckerMetric, Network
from geomerge.metrics import output_map
from geomerge.metrics.base import Metric
from geomerge.metrics.kronecker import leading_blocks
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.factor import Moments, factorise
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.batches import Batch, split
from geomerge.testing import dense_kronecker, dense_metric

Case = tuple[Network, Batch]


def truncated(metric: KroneckerMetric, rank: int) -> KroneckerMetric:
    layers = tuple(
        KroneckerLayer(
            x.name, x.weight, x.bias, x.inputs.truncated(rank), x.outputs.truncated(rank)
        )
        for x in metric.layers
    )
    return KroneckerMetric(metric.n, layers, metric.rest, metric.diagonal, metric.diagonal_only)


@pytest.mark.parametrize("output", ["logits", "hellinger"])
def test_layer_blocks_are_exact_for_one_input(output: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.Tanh())
    network = Network(net.double())
    x = torch.randn(1, 5, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], output, sign_vectors=None)
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
    metric = estimate_kronecker(network, network.initial, [x], "logits", sign_vectors=None)
    truth = dense_metric(network, network.initial, x)
    torch.testing.assert_close(dense_kronecker(metric), truth, rtol=1e-9, atol=1e-12)


def test_rest_has_the_exact_diagonal_running_statistics_too(case: Case) -> None:
    network, x = case
    metric = estimate_kronecker(
        network, network.initial, split(x, 3), "hellinger", sign_vectors=None
    )
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
    assert metric.inner(v, v) == pytest.approx(float(v @ g @ v), rel=1e-9)
    assert metric.inner(u, u) >= 0
    coordinates = metric.coordinates(v)
    torch.testing.assert_close(coordinates.compose(coordinates.parts), v)
    assert coordinates.sum(torch.ones_like) == pytest.approx(float(v @ v), rel=1e-9)
    solved = coordinates.compose(coordinates.scaled(lambda s: 1 / (s + 0.1)))
    torch.testing.assert_close(g @ solved + 0.1 * solved, v)


def test_metric_is_the_mean_over_inputs_however_they_are_batched(case: Case) -> None:
    network, x = case
    one = estimate_kronecker(network, network.initial, [x], "logits")
    two = estimate_kronecker(network, network.initial, split(x, 2), "logits")
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


def test_sign_vectors_have_the_right_expectation_for_many_outputs() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(6, 40)).double())
    x = torch.randn(2000, 6, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], "logits")
    (layer,) = metric.layers
    torch.testing.assert_close(
        layer.outputs.dense(), torch.eye(40).double(), atol=0.1, rtol=0
    )  # d logits = identity


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


class Attention(nn.Module):
    """Self-attention of one token, then cross-attention to it, with packed projections."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(4, 2, batch_first=True)
        self.other = nn.MultiheadAttention(4, 2)
        self.last = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.own(x, x, x, need_weights=False)
        y = y.transpose(0, 1)
        z, _ = self.other(y.flip(2), y, y)
        return functional.linear(z.squeeze(0), weight=self.last)


def test_packed_projections_and_functional_layers_are_covered() -> None:
    torch.manual_seed(0)
    network = Network(Attention().double())
    x = torch.randn(1, 1, 4, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], sign_vectors=None)
    assert [layer.name for layer in metric.layers] == [
        "own.in_proj_weight", "own.out_proj",
        "other.in_proj_weight[0:4]", "other.in_proj_weight[4:12]", "other.out_proj", "last",
    ]  # fmt: skip
    assert not metric.rest
    truth = dense_metric(network, network.initial, x, "hellinger")
    got = dense_kronecker(metric)
    for layer in metric.layers:
        at = layer.matrix(torch.arange(network.n)).reshape(-1)
        torch.testing.assert_close(got[at][:, at], truth[at][:, at], rtol=1e-9, atol=1e-12)


class Twice(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "at once":
            y = self.layer(x)
        elif self.how == "positions first":
            y = self.layer(x.transpose(0, 1)).transpose(0, 1)
        else:
            y = torch.cat([self.layer(x[:, :2]), self.layer(x[:, 2:])], dim=1)
        return y.tanh().sum(dim=1)


def test_uses_of_a_weight_count_alike_however_they_are_called() -> None:
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    found = []
    for how in ("at once", "positions first", "in two calls"):
        torch.manual_seed(0)
        network = Network(Twice(how).double())
        found.append(dense_kronecker(estimate_kronecker(network, network.initial, [x[:4], x[4:]])))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


class Tied(nn.Module):
    """Weights that serve in other ways than as a layer's, or not for each input."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tied = tied
        self.table = nn.Embedding(7, 4)
        self.place = nn.Embedding(5, 4)
        self.token = nn.Parameter(torch.randn(1, 4))
        self.shift = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.place(torch.arange(x.shape[1]))
        y = self.norm(self.table(x) + places + self.shift(self.token))
        return self.head((y + self.table(x.flip(1))).tanh().sum(dim=1))


@pytest.mark.parametrize("tied", [True, False])
def test_other_weights_have_the_exact_diagonal(tied: bool) -> None:
    torch.manual_seed(0)
    network = Network(Tied(tied).double())
    x = torch.randint(0, 7, (6, 5))
    metric = estimate_kronecker(network, network.initial, [x[:4], x[4:]], sign_vectors=None)
    assert [layer.name for layer in metric.layers] == ([] if tied else ["head"])
    at = torch.cat([torch.arange(network.n)[s] for s in metric.rest])
    truth = dense_metric(network, network.initial, x, "hellinger")
    torch.testing.assert_close(metric.diagonal, truth.diagonal()[at], rtol=1e-9, atol=1e-12)


def test_two_sign_vectors_are_exact_for_inputs_ambiguous_between_two_classes() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(5, 10)).double())
    with torch.no_grad():
        network.initial[-10:-2] -= 60  # the other classes have no probability
    x = torch.randn(6, 5, dtype=torch.float64)
    exact = estimate_kronecker(network, network.initial, [x], sign_vectors=None)
    for seed in range(3):
        metric = estimate_kronecker(network, network.initial, [x], seed=seed, sign_vectors=2)
        torch.testing.assert_close(dense_kronecker(metric), dense_kronecker(exact))


def test_diagonal_of_many_outputs_has_the_right_expectation() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.LayerNorm(40)).double())
    x = torch.randn(400, 40, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], "logits")
    scale, shift = metric.diagonal.split(40)
    torch.testing.assert_close(shift, torch.ones(40).double())
    torch.testing.assert_close(scale, functional.layer_norm(x, (40,)).square().mean(dim=0))


def test_very_wide_rows_keep_leading_directions_and_the_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 30, dtype=torch.float64)
    rows = rows + 1e-4 * torch.randn(50, 30, dtype=torch.float64)
    monkeypatch.setattr("geomerge.metrics.kronecker.factor.WIDEST", 20)
    monkeypatch.setattr("geomerge.metrics.kronecker.factor._WIDE_RANK", 8)
    moments = Moments()
    for part in rows.split(17):
        moments.add(part, 0.5)
    factor = moments.factor(50)
    truth = rows.T @ rows / 100
    assert factor.vectors.shape == (30, 8)
    assert factor.trace == pytest.approx(float(truth.trace()), rel=1e-12)
    torch.testing.assert_close(factor.vectors.T @ factor.vectors, torch.eye(8).double())
    torch.testing.assert_close(factor.dense(), truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ranks", [(100, 100), (2, 100), (100, 2), (2, 2)])
def test_functions_agree_with_those_of_coordinates_when_truncated(
    case: Case, ranks: tuple[int, int]
) -> None:
    network, x = case
    whole = estimate_kronecker(network, network.initial, [x], "hellinger")
    layers = tuple(
        replace(b, inputs=b.inputs.truncated(ranks[0]), outputs=b.outputs.truncated(ranks[1]))
        for b in whole.layers
    )
    metric = replace(whole, layers=layers)
    v = torch.randn(network.n, dtype=torch.float64)

    def damped(s: torch.Tensor) -> torch.Tensor:
        return 1 / (s + 0.01)

    torch.testing.assert_close(metric.apply(damped, v), Metric.apply(metric, damped, v))


def test_outside_of_leading_blocks_eigenvalues_are_replaced_by_their_mean() -> None:
    torch.manual_seed(0)
    sizes = 30, 20
    factors = [factorise(torch.diag(torch.logspace(0, -6, n, dtype=torch.float64))) for n in sizes]
    layer = KroneckerLayer("x", slice(0, 600), None, *factors).with_leading_blocks(1e-3)
    assert layer.leading_blocks is not None
    wide, tall = layer.leading_blocks
    assert 0 < wide < 30
    assert 0 < tall < 20
    values = layer.outputs.values[:, None] * layer.inputs.values
    assert values[tall:, wide:].max() <= 1e-3
    values[tall:, wide:] = values[tall:, wide:].mean()
    v = torch.randn(600).double()
    u_a, u_b = layer.inputs.vectors, layer.outputs.vectors

    def damped(s: torch.Tensor) -> torch.Tensor:
        return 1 / (s + 2e-3)

    truth = u_b @ (damped(values) * (u_b.T @ layer.matrix(v) @ u_a)) @ u_a.T
    found = torch.empty_like(v)
    layer.apply(damped, v, found)
    torch.testing.assert_close(layer.matrix(found), truth)


def test_leading_blocks_are_the_cheapest_above_a_threshold() -> None:
    sizes = 30, 20
    factors = [factorise(torch.diag(torch.logspace(0, -6, n, dtype=torch.float64))) for n in sizes]
    layer = KroneckerLayer("x", slice(0, 580), slice(580, 600), *factors)
    values = layer.outputs.values[:, None] * layer.inputs.values

    def products(wide: int, tall: int) -> int:
        return 600 * (wide + tall) + 20 * 20 * wide + 30 * 30 * tall

    for threshold in (1e-7, 1e-3, 10.0):
        fit = {
            (wide, tall): products(wide, tall)
            for wide in range(31)
            for tall in range(21)
            if not (values[tall:, wide:] > threshold).any()
        }
        found = layer.with_leading_blocks(threshold).leading_blocks
        assert found is not None
        assert fit[found] == min(fit.values())


@pytest.mark.parametrize("threshold", [1e-7, 1e-3, 10.0])
@pytest.mark.parametrize("biased", [False, True])
def test_a_function_is_applied_alike_in_parts_and_again(
    threshold: float, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    turned = [torch.linalg.qr(torch.randn(n, n).double()).Q for n in (30, 20)]
    factors = [factorise((q * torch.logspace(0, -6, len(q))) @ q.T) for q in turned]
    places = (slice(0, 580), slice(580, 600)) if biased else (slice(0, 600), None)
    layer = KroneckerLayer("x", *places, *factors).with_leading_blocks(threshold)
    v = torch.randn(600).double()
    once, again, in_parts = (torch.empty_like(v) for _ in range(3))
    layer.apply(lower_half, v, once)
    layer.apply(lower_half, v, again)  # with what was kept of it
    assert torch.equal(once, again)
    monkeypatch.setattr(leading_blocks, "_BLOCK", 1)
    layer.apply(lower_half, v, in_parts)
    torch.testing.assert_close(in_parts, once)


def lower_half(s: torch.Tensor) -> torch.Tensor:
    return 0.5 * s
