"""Least predicted drift under budgets, against the optimality conditions of a dense program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from unit_networks import kronecker_case

from geomerge.merging.least_drift import least_drift
from geomerge.metrics.kronecker.mean import KroneckerMean

COUNT, DAMPING = 3, 0.05


@pytest.fixture(scope="module")
def mean() -> KroneckerMean:
    metrics, points = kronecker_case(COUNT)
    return KroneckerMean(metrics, points, torch.stack(points).mean(dim=0))


def drifts(mean: KroneckerMean, w: Tensor) -> list[float]:
    return mean.drifts(w)


def test_without_budgets_the_sum_is_that_of_the_mean(mean: KroneckerMean) -> None:
    found = least_drift(mean, DAMPING, [1.0] * COUNT)
    assert torch.equal(found.w, mean.at(DAMPING))
    assert (found.programs, found.prices) == (0, {})


def test_a_network_of_more_weight_drifts_less(mean: KroneckerMean) -> None:
    even = least_drift(mean, DAMPING, [1.0, 1.0, 1.0])
    more = least_drift(mean, DAMPING, [4.0, 1.0, 1.0])
    assert more.drifts[0] < even.drifts[0]
    assert sum(more.drifts) > sum(even.drifts)


def test_budgets_are_kept_at_a_price_that_is_the_gain_of_more(mean: KroneckerMean) -> None:
    free = least_drift(mean, DAMPING, [1.0] * COUNT)
    limits = {0: 0.5 * free.drifts[0], 1: 10 * free.drifts[1]}
    found = least_drift(mean, DAMPING, [1.0] * COUNT, limits)
    assert found.drifts[0] == pytest.approx(limits[0], rel=3e-3)
    assert found.prices[0] > 0
    assert found.prices[1] == 0  # it does not bind
    assert found.programs > 0
    assert found.residual < 1e-6
    # The point is the mean for the prices: nothing near it with these drifts has a smaller sum.
    assert torch.allclose(found.w, mean.at(DAMPING, found.scales), atol=2e-3)
    assert found.scales == pytest.approx([1 + found.prices[0], 1.0, 1.0])


def test_the_worst_drift_is_least_where_those_that_count_are_equal(mean: KroneckerMean) -> None:
    even = least_drift(mean, DAMPING, [1.0] * COUNT)
    found = least_drift(mean, DAMPING, [1.0] * COUNT, worst=True)
    assert max(found.drifts) < max(even.drifts)
    assert sum(found.scales) == pytest.approx(COUNT)
    counting = [q for q, s in zip(found.drifts, found.scales, strict=True) if s > 1e-2]
    assert max(counting) - min(counting) < 2e-3 * max(counting)
    assert max(counting) == pytest.approx(max(found.drifts), rel=3e-3)
    half = least_drift(mean, DAMPING, [1.0] * COUNT, {2: 0.5 * found.drifts[2]}, worst=True)
    assert half.drifts[2] == pytest.approx(0.5 * found.drifts[2], rel=3e-3)
    assert max(half.drifts) > max(found.drifts)


def test_budgets_that_contradict_each_other_end(mean: KroneckerMean) -> None:
    found = least_drift(mean, DAMPING, [1.0] * COUNT, dict.fromkeys(range(COUNT), 1e-9))
    assert bool(found.w.isfinite().all())
    assert max(found.drifts) > 1e-9
