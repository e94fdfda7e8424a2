from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from geomerge import KroneckerMetric, Network
from geomerge.metrics import EuclideanMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.pruning.obs import Consumers, magnitudes
from geomerge.pruning.parts import Part, Role
from geomerge.pruning.units import Units, find_units

LAYERS = ("stem", "inner", "hidden")


class Tied(nn.Module):
    """Channels that a convolution and, flattened, a linear layer read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 3, 3, padding=1)
        self.outer = nn.Conv2d(3, 4, 1)
        self.hidden = nn.Linear(16, 6)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).tanh()
        x = x + self.outer(functional.silu(self.inner(x)))
        x = functional.avg_pool2d(x, 2)
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


@pytest.fixture(scope="module")
def setting() -> tuple[Network, Tensor, dict[str, Units]]:
    torch.manual_seed(0)
    network = Network(Tied().double())
    x = torch.randn(30, 2, 4, 4, dtype=torch.float64)
    return network, x, find_units(network, x)


@pytest.fixture(scope="module", params=["full", "truncated"])
def metric(
    request: pytest.FixtureRequest, setting: tuple[Network, Tensor, dict[str, Units]]
) -> KroneckerMetric:
    network, x, _ = setting
    found = estimate_kronecker(network, network.initial, [x], sign_vectors=None)
    if request.param == "full":
        return found
    layers = tuple(
        KroneckerLayer(
            one.name, one.weight, one.bias, one.inputs.truncated(7), one.outputs.truncated(2)
        )
        for one in found.layers
    )
    return KroneckerMetric(found.n, layers, found.rest, found.diagonal)


def consumers_of(metric: KroneckerMetric, units: Units) -> list[tuple[Part, KroneckerLayer]]:
    found = []
    for part in units.parts:
        if part.role is Role.CONSUMER:
            (layer,) = (one for one in metric.layers if one.weight.start == part.start)
            found.append((part, layer))
    return found


def columns(part: Part, chosen: Sequence[int]) -> Tensor:  # (d_in without bias,), bool
    """Mark the columns of the matrix that read some units."""
    tensor = torch.zeros(part.shape, dtype=torch.bool)
    for unit in chosen:
        tensor[:, part.indices[unit]] = True
    return tensor[0].reshape(-1)


def damped_inputs(layer: KroneckerLayer) -> Tensor:
    a = layer.inputs.dense()
    return a + 1e-2 * a.diagonal().mean() * torch.eye(len(a), dtype=torch.float64)


def least_cost(
    metric: KroneckerMetric, units: Units, w: Tensor, leaving: Sequence[int], gone: Sequence[int]
) -> float:
    """Solve the least squares of every layer that reads the units, in its dense metric."""
    total = 0.0
    for part, layer in consumers_of(metric, units):
        matrix = layer.matrix(w)
        g = torch.kron(layer.outputs.dense(), damped_inputs(layer))
        go, dead = torch.zeros(2, matrix.shape[1], dtype=torch.bool)
        inner = len(columns(part, []))
        go[:inner], dead[:inner] = columns(part, leaving), columns(part, gone)
        fixed = go.expand(matrix.shape).reshape(-1)
        free = (~go & ~dead).expand(matrix.shape).reshape(-1)
        d = -matrix.reshape(-1)[fixed]
        x = -torch.linalg.pinv(g[free][:, free], hermitian=True) @ g[free][:, fixed] @ d
        move = torch.zeros(matrix.numel(), dtype=torch.float64)
        move[fixed], move[free] = d, x
        total += float(move @ g @ move)
    return total


def compensated_moves(metric: KroneckerMetric, units: Units, w: Tensor) -> Tensor:  # (units, n)
    """Each unit's removal, row by row of the layers that read it: best for any B."""
    moves = torch.zeros(units.count, len(w), dtype=torch.float64)
    for unit in range(units.count):
        for part, layer in consumers_of(metric, units):
            matrix, a = layer.matrix(w), damped_inputs(layer)
            go = torch.zeros(matrix.shape[1], dtype=torch.bool)
            inner = len(columns(part, []))
            go[:inner] = columns(part, [unit])
            move = -matrix * go
            move[:, ~go] = -torch.linalg.solve(a[~go][:, ~go], a[~go][:, go] @ move[:, go].T).T
            layer.write(move, moves[unit])
    return moves


@pytest.mark.parametrize("layer", LAYERS)
def test_costs_are_those_of_the_least_squares(
    setting: tuple[Network, Tensor, dict[str, Units]], metric: KroneckerMetric, layer: str
) -> None:
    network, _, found = setting
    units, w = found[layer], network.initial
    costs = Consumers(units, metric, w, []).costs()
    truth = [least_cost(metric, units, w, [unit], []) for unit in range(units.count)]
    torch.testing.assert_close(costs, torch.tensor(truth).double(), rtol=1e-7, atol=1e-12)
    assert costs.dtype == torch.float64
    assert costs.min() > 0


@pytest.mark.parametrize("layer", LAYERS)
def test_units_that_are_gone_cost_infinity_and_make_up_for_nothing(
    setting: tuple[Network, Tensor, dict[str, Units]], metric: KroneckerMetric, layer: str
) -> None:
    network, _, found = setting
    units, w = found[layer], network.initial.clone()
    units.clear(w, [1])
    costs = Consumers(units, metric, w, [1]).costs()
    assert costs[1] == float("inf")
    for unit in (k for k in range(units.count) if k != 1):
        truth = least_cost(metric, units, w, [unit], [1])
        assert float(costs[unit]) == pytest.approx(truth, rel=1e-7)


@pytest.mark.parametrize("layer", LAYERS)
def test_removed_one_by_one_units_cost_what_they_cost_together(
    setting: tuple[Network, Tensor, dict[str, Units]], metric: KroneckerMetric, layer: str
) -> None:
    network, _, found = setting
    units, w = found[layer], network.initial
    consumers = Consumers(units, metric, w, [])
    order: list[int] = []
    spent = 0.0
    while len(order) < units.count - 1:
        costs = consumers.costs()
        assert costs[order].isinf().all()
        unit = int(costs.argmin())
        spent += float(costs[unit])
        consumers.remove(unit)
        order.append(unit)
        assert spent == pytest.approx(least_cost(metric, units, w, order, []), rel=1e-6)
        assert not consumers.alive[order].any()
        assert int(consumers.alive.sum()) == units.count - len(order)
    # tr(B W_P [(A + lambda)^-1_PP]^-1 W_P'), summed over the layers that read them
    closed = 0.0
    for part, one in consumers_of(metric, units):
        p = torch.zeros(one.inputs.vectors.shape[0], dtype=torch.bool)
        p[: len(columns(part, []))] = columns(part, order)
        inverse = torch.linalg.inv(damped_inputs(one))
        leaving = one.matrix(w)[:, p]
        schur = torch.linalg.inv(inverse[p][:, p])
        closed += float((one.outputs.dense() @ leaving @ schur @ leaving.T).trace())
    assert spent == pytest.approx(closed, rel=1e-8)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_program_counts_interactions_and_the_costs_themselves(
    setting: tuple[Network, Tensor, dict[str, Units]], metric: KroneckerMetric, layer: str
) -> None:
    network, _, found = setting
    units, w = found[layer], network.initial
    consumers = Consumers(units, metric, w, [])
    program = consumers.program()
    q = program.hessian
    torch.testing.assert_close(q, q.T, rtol=1e-10, atol=1e-14)
    assert torch.linalg.eigvalsh(q).min() >= -1e-10 * q.diagonal().max()
    torch.testing.assert_close(q.diagonal() / 2, consumers.costs(), rtol=1e-9, atol=0)
    assert not program.linear.any()
    # At any rates it is the cost of the moves, each compensated for itself.
    rates = torch.rand(units.count, dtype=torch.float64)
    move = rates @ compensated_moves(metric, units, w)
    truth = 0.0
    for _, one in consumers_of(metric, units):
        matrix = one.matrix(move)
        truth += float((one.outputs.dense() @ matrix @ damped_inputs(one) @ matrix.T).trace())
    assert program.cost(rates) == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_written_makes_up_for_all_that_is_gone(
    setting: tuple[Network, Tensor, dict[str, Units]], metric: KroneckerMetric, layer: str
) -> None:
    network, _, found = setting
    units, w = found[layer], network.initial
    consumers = Consumers(units, metric, w, [])
    same = w.clone()
    consumers.write(same)
    assert torch.equal(same, w)
    for unit in (2, 0):
        consumers.remove(unit)
    compensated = w.clone()
    consumers.write(compensated)
    assert not compensated[units.consumer_places([0, 2])].any()
    cost = 0.0
    for _, one in consumers_of(metric, units):
        matrix = one.matrix(compensated - w)
        cost += float((one.outputs.dense() @ matrix @ damped_inputs(one) @ matrix.T).trace())
    assert cost == pytest.approx(least_cost(metric, units, w, [2, 0], []), rel=1e-7)


@pytest.mark.parametrize("layer", LAYERS)
def test_units_shrink_each_compensated_for_itself(
    setting: tuple[Network, Tensor, dict[str, Units]], metric: KroneckerMetric, layer: str
) -> None:
    network, _, found = setting
    units, w = found[layer], network.initial
    rates = torch.rand(units.count, dtype=torch.float64)
    consumers = Consumers(units, metric, w, [])
    consumers.shrink(rates)
    shrunk = w.clone()
    consumers.write(shrunk)
    torch.testing.assert_close(shrunk, w + rates @ compensated_moves(metric, units, w))


@pytest.mark.parametrize("layer", LAYERS)
def test_slopes_are_derivatives_along_the_compensated_removal(
    setting: tuple[Network, Tensor, dict[str, Units]], metric: KroneckerMetric, layer: str
) -> None:
    network, x, found = setting
    units, w = found[layer], network.initial
    labels = torch.arange(len(x)) % 3

    def loss(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)

    slopes = Consumers(units, metric, w, []).slopes(network.gradient(w, x, loss)[1])
    for slope, move in zip(slopes, compensated_moves(metric, units, w), strict=True):
        up, down = (loss(network.logits(w + e * move, x)) for e in (1e-4, -1e-4))
        assert float(slope) == pytest.approx(float(up - down) / 2e-4, rel=1e-5, abs=1e-8)


def test_very_wide_consumers_count_by_the_diagonal(
    setting: tuple[Network, Tensor, dict[str, Units]],
    metric: KroneckerMetric,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, _, found = setting
    units, w = found["hidden"], network.initial
    exact = Consumers(units, metric, w, [])
    monkeypatch.setattr("geomerge.pruning.obs._WIDEST", 5)
    consumers = Consumers(units, metric, w, [])
    ((_, layer),) = consumers_of(metric, units)
    a, b, matrix = layer.inputs.dense().diagonal(), layer.outputs.dense(), layer.matrix(w)
    truth = torch.einsum("oj,op,pj,j->j", matrix, b, matrix, a)
    torch.testing.assert_close(consumers.costs(), truth, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(consumers.program().hessian, torch.diag(2 * truth))
    consumers.remove(2)
    assert consumers.costs()[2] == float("inf")
    torch.testing.assert_close(consumers.costs()[3:], truth[3:])
    assert not torch.allclose(exact.costs(), truth, rtol=1e-2)
    gradient = torch.randn(network.n, dtype=torch.float64)
    uncompensated = -(matrix * layer.matrix(gradient)).sum(dim=0)
    torch.testing.assert_close(consumers.slopes(gradient), uncompensated)


def test_without_a_layer_metric_costs_are_squared_norms_of_the_columns(
    setting: tuple[Network, Tensor, dict[str, Units]],
) -> None:
    network, _, found = setting
    for name in LAYERS:
        units, w = found[name], network.initial
        norms = torch.stack(
            [w[units.consumer_places([k])].square().sum() for k in range(units.count)]
        )
        costs = Consumers(units, EuclideanMetric(), w, []).costs()
        torch.testing.assert_close(costs, 1.01 * norms)


def test_magnitudes_are_sums_of_the_weights_that_make_a_unit(
    setting: tuple[Network, Tensor, dict[str, Units]],
) -> None:
    network, _, found = setting
    tensors = network.unravel(network.initial)
    own = {"stem": ("stem", "outer"), "inner": ("inner",), "hidden": ("hidden",)}
    for name, layers in own.items():
        truth = sum(tensors[f"{one}.weight"].abs().flatten(1).sum(dim=1) for one in layers)
        torch.testing.assert_close(magnitudes(network, found[name], network.initial), truth)
