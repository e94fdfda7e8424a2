"""What was measured before heads grew says the same about old weights and nothing about new."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.continual.grown_heads import carry_metric, carry_weights
from geomerge.errors import OptionError
from geomerge.metrics import combine
from geomerge.metrics.kronecker.estimate import estimate_kronecker


class Heads(nn.Module):
    def __init__(self, classes: int, heads: int, head: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 4)
        self.norm = nn.LayerNorm(4)
        self.heads = nn.ModuleList(nn.Linear(4, classes) for _ in range(heads))
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.heads[self.head](torch.tanh(self.norm(self.trunk(x))))
        return out


@pytest.mark.parametrize(("classes", "heads"), [(3, 1), (5, 1), (3, 2), (4, 3)])
def test_the_metric_of_a_grown_network(classes: int, heads: int) -> None:
    old, new = Network(Heads(3, 1).double()), Network(Heads(classes, heads).double())
    x = torch.randn(50, 5, dtype=torch.float64)
    metric = estimate_kronecker(old, old.initial, [x])
    carried = carry_metric(metric, old.shapes, new)
    u, v = torch.randn(2, old.n, dtype=torch.float64)
    zeros = torch.zeros(new.n, dtype=torch.float64)
    inside = carry_weights(torch.ones(old.n), old.shapes, new, zeros) == 1
    a, b = (carry_weights(part, old.shapes, new, zeros) for part in (u, v))
    assert carried.inner(a, b) == pytest.approx(metric.inner(u, v), rel=1e-9)
    torch.testing.assert_close(carried.mv(a), carry_weights(metric.mv(u), old.shapes, new, zeros))
    outside = torch.where(inside, 0.0, torch.randn(new.n, dtype=torch.float64))
    assert carried.inner(outside, outside) == pytest.approx(0, abs=1e-12)
    coordinates = carried.coordinates(outside + a)  # nothing is lost on the way there and back
    torch.testing.assert_close(coordinates.compose(coordinates.parts), outside + a)


def test_the_sum_of_metrics_of_two_heads() -> None:
    one, two = Network(Heads(3, 2, 0).double()), Network(Heads(3, 2, 1).double())
    x = torch.randn(50, 5, dtype=torch.float64)
    first, second = (estimate_kronecker(n, n.initial, [x]) for n in (one, two))
    both = combine([first, second])
    assert both.n == one.n
    for metric, name in ((first, "heads.0.weight"), (second, "heads.1.weight")):
        v = torch.zeros(one.n, dtype=torch.float64)
        v[one.slices[name]] = torch.randn(12, dtype=torch.float64)
        assert both.inner(v, v) == pytest.approx(metric.inner(v, v), rel=1e-9)
    v = torch.randn(one.n, dtype=torch.float64)
    coordinates = both.coordinates(v)
    torch.testing.assert_close(coordinates.compose(coordinates.parts), v)


def test_a_head_that_grew_behind_another_counts_once() -> None:
    old, new = [Network(Heads(3, 2, head).double()) for head in (0, 1)], Network(Heads(5, 2))
    x = torch.randn(50, 5, dtype=torch.float64)
    parts = [carry_metric(estimate_kronecker(n, n.initial, [x]), n.shapes, new) for n in old]
    v = torch.randn(new.n, dtype=torch.float64)
    coordinates = combine(parts).coordinates(v)
    assert sum(part.numel() for part in coordinates.parts) == new.n
    assert coordinates.sum(torch.ones_like) == pytest.approx(float(v @ v))


def test_other_changes_are_refused() -> None:
    old = Network(Heads(3, 1))
    with pytest.raises(OptionError, match="only heads may grow"):
        carry_weights(old.initial, old.shapes, Network(nn.Linear(5, 4)), old.initial)
    with pytest.raises(OptionError, match="only heads may grow"):
        carry_metric(
            estimate_kronecker(old, old.initial, [torch.randn(9, 5)]),
            old.shapes,
            Network(Heads(2, 1)),
        )
