from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geomerge import Network
from geomerge.metrics import KroneckerMetric
from geomerge.pruning.damage import column_costs, rank_correlation
from geomerge.pruning.units import find_units


def vectors(count: int = 10, repeats: int = 4) -> Tensor:
    """Inputs of which every quarter is the same: units are measured on a quarter."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, dtype=torch.float64, generator=generator).repeat(repeats, 1)


def tiny(*layers: nn.Module) -> Network:
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return Network(nn.Sequential(*layers).double())


def test_consumers_that_have_no_factors_count_by_the_diagonal() -> None:
    network = tiny(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    w = network.initial
    metric = KroneckerMetric(network.n, (), (slice(0, network.n),), torch.rand_like(w))
    one = find_units(network, vectors())["0"]
    costs = column_costs(one, metric, w)
    for unit in range(one.count):
        d = torch.zeros_like(w)
        d[one.consumer_places([unit])] = w[one.consumer_places([unit])]
        assert float(costs[unit]) == pytest.approx(metric.inner(d, d))


def test_a_rank_correlation_needs_ranks() -> None:
    assert rank_correlation([(1.0, 2.0), (2.0, 3.0), (3.0, 9.0)]) == pytest.approx(1)
    assert rank_correlation([(1.0, 2.0), (2.0, 3.0)]) is None
    assert rank_correlation([(1.0, 2.0), (2.0, 3.0), (3.0, None)]) is None
    assert rank_correlation([(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]) is None
