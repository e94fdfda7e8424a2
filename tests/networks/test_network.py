from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.errors import CheckpointError, TaskError
from geomerge.networks.batches import Batch, batch_size
from geomerge.walks.objectives import divergence

Case = tuple[Network, Batch]


def test_vector_and_state_dict_are_the_same_thing(case: Case) -> None:
    network, x = case
    w = torch.randn(network.n, dtype=torch.float64).abs() + 0.1
    assert torch.equal(network.ravel(network.state_dict(w)), w)
    torch.testing.assert_close(network.outputs(w, x), network.call(network.shared_module(w), x))
    assert torch.equal(torch.cat([v.reshape(-1) for v in network.unravel(w).values()]), w)
    parameters = torch.cat([p.reshape(-1) for p in network.module.parameters()])
    assert torch.equal(w[network.trained], parameters)


def test_loading_does_not_change_the_vector(case: Case) -> None:
    network, x = case
    before = network.initial.clone()
    uniform = torch.log_softmax(torch.zeros(batch_size(x), 3).double(), 1)
    network.gradient(network.initial, x, divergence(uniform))
    assert torch.equal(network.initial, before)


def test_gradient_is_the_derivative_of_the_distance(case: Case) -> None:
    network, x = case
    target = torch.log_softmax(torch.randn(batch_size(x), 3, dtype=torch.float64), 1)
    w = network.initial
    distance, gradient = network.gradient(w, x, divergence(target))
    step = torch.randn(network.n, dtype=torch.float64) * 1e-6
    step[network.n_parameters :] = 0
    ahead, behind = (network.gradient(w + s * step, x, divergence(target))[0] for s in (1, -1))
    assert ahead - behind == pytest.approx(2 * float(gradient @ step), rel=1e-4)
    assert distance > 0
    assert (gradient[network.n_parameters :] == 0).all()


def test_tied_weights_appear_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.two(self.one(x))
            return out

    network = Network(Tied())
    assert network.n == 9 + 3 + 3
    state = network.state_dict(network.initial + 1)
    assert torch.equal(state["one.weight"], state["two.weight"])


def test_inputs_that_do_not_fit_are_refused() -> None:
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    w = network.initial
    with pytest.raises(TaskError, match="takes 4 numbers, and mnist has inputs"):
        network.check_inputs(w, torch.zeros(2, 5), 3, "mnist")
    with pytest.raises(TaskError, match="3 outputs and mnist has 10 classes"):
        network.check_inputs(w, torch.zeros(2, 4), 10, "mnist")
    with pytest.raises(CheckpointError, match="not finite"):
        network.check_inputs(w * float("nan"), torch.zeros(2, 4), 3, "mnist")


def test_a_network_that_is_not_deterministic_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.body(x)
            return out + torch.rand_like(out)

    network = Network(Noisy())
    with pytest.raises(CheckpointError, match="two different outputs"):
        network.check_inputs(network.initial, torch.zeros(2, 4), 3, "mnist")


def test_large_inputs_pass_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Network(nn.Linear(6, 3).double())
    x = torch.randn(7, 6, dtype=torch.float64)
    whole = network.logits(network.initial, x)
    monkeypatch.setattr("geomerge.networks.network._NUMBERS", 13)
    seen = []
    network.module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    torch.testing.assert_close(network.logits(network.initial, x), whole)
    assert seen == [2, 2, 2, 1]
