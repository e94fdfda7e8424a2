"""Mean of two networks in the metrics of their functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.continual.kronecker_mean import kronecker_mean
from geomerge.metrics.kronecker.estimate import estimate_kronecker


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_mean_solves_its_equation(weight: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 4)).double()
    network = Network(module)
    first = network.initial
    second = first + 0.3 * torch.randn_like(first)
    one, two = (
        estimate_kronecker(network, w, [torch.randn(200, 5).double() * scale], "logits")
        for w, scale in ((first, 1.0), (second, torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])))
    )
    mean = kronecker_mean(first, second, (one, two), weight)

    def pull(g: object, v: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = g.apply(lambda e: e, v)  # type: ignore[attr-defined]
        return found

    residual = weight * pull(one, first - mean) + pull(two, second - mean)
    assert float(residual.norm()) < 1e-3 * float(pull(two, second - first).norm())


def test_equal_metrics_give_the_plain_mean() -> None:
    torch.manual_seed(0)
    network = Network(nn.Linear(5, 3).double())
    metric = estimate_kronecker(network, network.initial, [torch.randn(90, 5).double()], "logits")
    other = network.initial + torch.randn(network.n)
    mean = kronecker_mean(network.initial, other, (metric, metric))
    torch.testing.assert_close(mean, (network.initial + other) / 2, rtol=1e-4, atol=1e-4)
