from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.alignment import align_weights, permuted_metric
from geomerge.data import Inputs, Normalisation
from geomerge.metrics import make_sketch
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.sketch import truncated_metric
from geomerge.testing import dense_kronecker


def networks() -> tuple[Network, torch.Tensor, torch.Tensor, Inputs]:
    """A network with convolutions, a norm and biases, two weights for it, and inputs."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh(), nn.Conv2d(5, 4, 2, bias=False),
        nn.Flatten(), nn.Linear(36, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3),
    ).double()  # fmt: skip
    network = Network(module)
    trained = network.trained
    a, b = (
        torch.where(trained, network.initial + 0.3 * torch.randn(network.n).double(), 1.0)
        for _ in range(2)
    )
    inputs = Inputs(torch.randn(40, 2, 4, 4), Normalisation((0.0,), (1.0,)))
    return network, a, b, inputs


@pytest.mark.parametrize("output", ["hellinger", "logits"])
def test_a_permuted_metric_is_the_one_of_the_permuted_network(output: str) -> None:
    network, a, b, inputs = networks()
    aligned, found = align_weights(network, a, b, inputs=inputs)
    assert sum(found.moved.values()) > 0
    x = inputs.batch(slice(None)).double()
    old = estimate_kronecker(network, b, [x], output)
    new = estimate_kronecker(network, aligned, [x], output)
    got, want = (dense_kronecker(m) for m in (permuted_metric(old, found), new))
    assert (got - want).norm() <= 1e-9 * want.norm()
    assert (dense_kronecker(old) - want).norm() > 1e-3 * want.norm()


def test_a_truncated_sketch_keeps_its_inner_products() -> None:
    network, a, b, inputs = networks()
    _, found = align_weights(network, a, b, inputs=inputs)
    x = inputs.batch(slice(None)).double()
    old = truncated_metric(estimate_kronecker(network, b, [x]), network.n)
    new = permuted_metric(old, found)
    assert not all(layer.inputs.full and layer.outputs.full for layer in new.layers)
    u, v = torch.randn(2, network.n, dtype=torch.float64)
    assert new.inner(found.permute(u), found.permute(v)) == pytest.approx(old.inner(u, v))


def test_a_float32_sketch_is_the_one_measured_anew() -> None:
    network, a, b, inputs = networks()
    network, a, b = Network(network.module.float()), a.float(), b.float()
    aligned, found = align_weights(network, a, b, inputs=inputs)
    old, new = (make_sketch(network, w, inputs, "task", count=40) for w in (b, aligned))
    got, want = (dense_kronecker(m) for m in (permuted_metric(old.metric, found), new.metric))
    assert (got - want).norm() <= 1e-3 * want.norm()
