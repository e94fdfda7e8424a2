from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from geomerge import Network
from geomerge.metrics.exact import exact_metric
from geomerge.metrics.gram import gram_metric
from geomerge.metrics.kronecker.coverage import find_coverage
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.testing import dense_metric


class Shared(nn.Module):
    """One norm called twice, one whose scale serves elsewhere, one functional, one of a token."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.LayerNorm((3, 4))
        self.tied = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.randn(4))
        self.alone = nn.LayerNorm(4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(3, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(x + self.positions).tanh() + x)
        y = functional.relu(self.tied(y) + self.tied.weight, inplace=True)
        y = functional.rms_norm(y, [4], weight=self.scale) + self.alone(self.token)
        return self.head(torch.cat([self.token.expand(len(x), -1, -1), y], dim=1).tanh().sum(1))


class PositionsFirst(nn.Module):
    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        y = self.norm(y.flatten(0, 1)).view(y.shape) if self.flat else self.norm(y)
        return self.head(y.tanh().sum(0))


def frozen(kind: type[nn.Module], **options: bool) -> nn.Module:
    norms = [kind(4, track_running_stats=True, **options) for _ in range(2)]
    with torch.no_grad():
        for norm in norms:
            for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
                if tensor.is_floating_point():
                    tensor.uniform_(-1, 1) if "mean" in name else tensor.uniform_(0.5, 2)
    conv = nn.Conv2d(4, 4, 2)
    return nn.Sequential(norms[0], conv, norms[1], nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def normed(*norms: nn.Module) -> nn.Module:
    return nn.Sequential(*norms, nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch": (lambda: frozen(nn.BatchNorm2d), (4, 3, 3)),
    "batch without scale": (lambda: frozen(nn.BatchNorm2d, affine=False), (4, 3, 3)),
    "frozen instance": (lambda: frozen(nn.InstanceNorm2d, affine=True), (4, 3, 3)),
    "instance": (lambda: normed(nn.InstanceNorm2d(4, affine=True)), (4, 3, 3)),
    "group": (lambda: normed(nn.GroupNorm(2, 4), nn.ReLU(), nn.GroupNorm(1, 4)), (4, 3, 3)),
    "positions first": (lambda: PositionsFirst(False), (5, 4)),
    "shared": (Shared, (3, 4)),
}


def made(name: str) -> tuple[Network, Tensor]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = Network(make().double())
    network.initial[: network.n_parameters] += 0.3 * torch.randn(network.n_parameters).double()
    return network, torch.randn(6, *shape, dtype=torch.float64)


@pytest.mark.parametrize("output", ["logits", "hellinger"])
@pytest.mark.parametrize("name", NETWORKS)
def test_they_have_the_exact_diagonal(name: str, output: str) -> None:
    network, x = made(name)
    metric = estimate_kronecker(network, network.initial, [x[:4], x[4:]], output, sign_vectors=None)
    truth = dense_metric(network, network.initial, x, output).diagonal()
    at = torch.cat([torch.arange(network.n)[place] for place in metric.rest])
    torch.testing.assert_close(metric.diagonal, truth[at], rtol=1e-10, atol=1e-14)
    assert float(truth[at].min()) > 0


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "shared"])
def test_they_need_no_pass_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("geomerge.metrics.kronecker.estimate.squared_derivatives")
    network, x = made(name)
    assert estimate_kronecker(network, network.initial, [x]).rest


def test_tensors_with_other_uses_have_the_derivatives_of_all_of_them() -> None:
    network, x = made("shared")
    found = find_coverage(network, network.initial, x[:1])
    assert found.copied == ["token"]
    assert found.one_by_one == ["alone.weight", "alone.bias"]  # the norm of the token


def test_inputs_and_positions_in_one_axis_are_not_told_apart() -> None:
    torch.manual_seed(0)
    network = Network(PositionsFirst(flat=True).double())
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    assert find_coverage(network, network.initial, x[:1]).norms == {}
    metric = estimate_kronecker(network, network.initial, [x], sign_vectors=None)
    truth = dense_metric(network, network.initial, x, "hellinger").diagonal()
    torch.testing.assert_close(metric.diagonal, truth[:8], rtol=1e-10, atol=1e-14)


class OneByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.head(self.norm(one.unsqueeze(0)).tanh()) for one in x])


def test_inputs_may_be_taken_in_a_loop() -> None:
    torch.manual_seed(0)
    network = Network(OneByOne().double())
    x = torch.randn(6, 4, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], sign_vectors=None)
    truth = dense_metric(network, network.initial, x, "hellinger").diagonal()
    torch.testing.assert_close(metric.diagonal, truth[:8], rtol=1e-10, atol=1e-14)
    assert [layer.name for layer in metric.layers] == ["head"]


def test_frozen_instance_norms_can_be_measured_exactly() -> None:
    network, x = made("frozen instance")
    v = torch.randn(network.n, dtype=torch.float64)
    truth = v @ dense_metric(network, network.initial, x, "hellinger") @ v
    for metric in (
        gram_metric(network, network.initial, x),
        exact_metric(network, network.initial, [x], "hellinger"),
    ):
        assert metric.inner(v, v) == pytest.approx(float(truth), rel=1e-9)
