from __future__ import annotations

import pytest
import torch

from geomerge import Network
from geomerge.metrics import EuclideanMetric, MaskedMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.networks.batches import Batch
from geomerge.steps import (
    damped_step,
    precondition,
    preconditioned_move,
    preconditioned_step,
    trust_region_step,
)

Case = tuple[Network, Batch]


def masked(case: Case) -> tuple[MaskedMetric, torch.Tensor, torch.Tensor]:
    network, x = case
    metric = estimate_kronecker(network, network.initial, [x])
    free = torch.rand(network.n, generator=torch.Generator().manual_seed(1)) < 0.6
    v = torch.randn(network.n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return MaskedMetric(metric, free), free, v


def test_steps_leave_the_other_weights_exactly_where_they_are(case: Case) -> None:
    metric, free, v = masked(case)
    for step in (
        damped_step(metric, v, 0.1, 1.0).tangent,
        trust_region_step(metric, v, 0.1).tangent,
        precondition(metric, v, 0.1),
        metric.mv(v),
    ):
        assert (step[~free] == 0).all()
        assert (step[free] != 0).any()


def test_it_is_symmetric_positive_and_the_metric_itself_on_the_plane(case: Case) -> None:
    metric, free, v = masked(case)
    u = torch.randn(len(v), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert metric.inner(u, v) == pytest.approx(metric.inner(v, u))
    assert metric.inner(u, u) >= 0
    plain = torch.where(free, v, 0.0)
    assert metric.inner(v, v) == pytest.approx(float(plain @ metric.mv(plain)))
    p = float(u @ precondition(metric, v, 0.1))
    assert p == pytest.approx(float(v @ precondition(metric, u, 0.1)))


def test_a_masked_euclidean_step_is_the_projected_direction() -> None:
    v = torch.tensor([1.0, 2.0, 3.0])
    metric = MaskedMetric(EuclideanMetric(), torch.tensor([True, False, True]))
    assert precondition(metric, v, 0.5).tolist() == [1.0, 0.0, 3.0]


@pytest.mark.parametrize("damping", [1e-5, 1e-1])
def test_what_a_step_is_predicted_to_change_is_what_the_metric_says(
    case: Case, damping: float
) -> None:
    metric, _, v = masked(case)
    tangent, predicted = preconditioned_step(metric, v, damping, 0.3)
    assert predicted == pytest.approx(metric.inner(tangent, tangent))
    end, length, again = preconditioned_move(metric, v, v, damping, 0.3)
    torch.testing.assert_close(end, v + tangent)
    assert (length, again) == pytest.approx((float(tangent.norm()), predicted))
