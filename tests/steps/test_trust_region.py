from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geomerge import KroneckerMetric, Network
from geomerge.errors import NumericalError
from geomerge.metrics import EuclideanMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.steps import (
    damped_step,
    precondition,
    preconditioned_move,
    preconditioned_step,
    trust_region,
    trust_region_step,
)
from geomerge.testing import dense_kronecker


def metric(seed: int) -> KroneckerMetric:
    torch.manual_seed(seed)
    network = Network(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double())
    x = torch.randn(3, 4, dtype=torch.float64)  # fewer inputs than weights: g is singular
    return estimate_kronecker(network, network.initial, [x], "logits")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10),
    log_beta=st.floats(-5, 3),
    log_radius=st.floats(-4, 0),
)
def test_step_satisfies_the_optimality_conditions(
    seed: int, log_beta: float, log_radius: float
) -> None:
    g = metric(seed)
    beta, radius = 10**log_beta, 10**log_radius
    v = torch.randn(g.n, dtype=torch.float64)
    step = trust_region_step(g, v, radius, beta)
    dense = dense_kronecker(g)
    theta = step.tangent
    residual = 2 * (dense @ theta + step.damping * theta) - beta * v
    assert float(residual.norm()) <= 1e-6 * beta * float(v.norm())
    assert step.damping >= 0
    assert float(theta.norm()) <= radius * (1 + 1e-6)
    assert step.norm == pytest.approx(float(theta.norm()), rel=1e-9)
    assert step.predicted == pytest.approx(float(theta @ dense @ theta), rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_no_step_of_the_same_length_is_better(seed: int) -> None:
    g = metric(seed)
    v = torch.randn(g.n, dtype=torch.float64)
    dense = dense_kronecker(g)
    step = trust_region_step(g, v, 0.1, 0.5)

    def objective(theta: torch.Tensor) -> float:
        return float(theta @ dense @ theta - 0.5 * theta @ v)

    for _ in range(50):
        other = step.tangent + 0.02 * torch.randn_like(v)
        other *= min(1.0, 0.1 / float(other.norm()))
        assert objective(step.tangent) <= objective(other) + 1e-12


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0])
def test_tied_beta_has_the_length_asked_for_and_overshoots_nowhere(radius: float) -> None:
    g = metric(0)
    v = torch.randn(g.n, dtype=torch.float64)
    step = trust_region_step(g, v, radius)
    assert step.norm == pytest.approx(radius, rel=1e-5)
    parts = g.coordinates(v).parts
    walked = g.coordinates(step.tangent).parts
    for c, d in zip(parts, walked, strict=True):
        assert (d * c >= -1e-12).all()
        assert (d.abs() <= c.abs() + 1e-12).all()


def test_large_beta_goes_straight_and_small_beta_stays_on_the_manifold() -> None:
    g = metric(0)
    v = torch.randn(g.n, dtype=torch.float64)
    straight = trust_region_step(g, v, 0.1, 1e9).tangent
    assert float(torch.cosine_similarity(straight, v, dim=0)) == pytest.approx(1)
    kept = trust_region_step(g, v, 0.1, 1e-9)
    assert kept.predicted < 1e-9 * g.inner(straight, straight)


def test_euclidean_steps_are_straight() -> None:
    v = torch.randn(20, dtype=torch.float64)
    metric = EuclideanMetric()
    for step in (trust_region_step(metric, v, 0.1), damped_step(metric, v, 0.5, 0.1)):
        torch.testing.assert_close(step.tangent, 0.1 * v / v.norm(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(precondition(metric, v, 0.3), v)


def test_a_direction_of_length_zero_is_an_error() -> None:
    with pytest.raises(NumericalError, match="has length 0"):
        trust_region_step(EuclideanMetric(), torch.zeros(3), 0.1)


@pytest.mark.parametrize("block", [7, 10**6])
def test_a_move_is_the_step_taken(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_region, "_BLOCK", block)
    g = metric(0)
    w, v = torch.randn(2, g.n, dtype=torch.float64)
    tangent, predicted = preconditioned_step(g, v, 0.1, 0.3)
    before = w.clone()
    end, length, again = preconditioned_move(g, w, v, 0.1, 0.3)
    torch.testing.assert_close(end, w + tangent)
    assert (length, again) == pytest.approx((float(tangent.norm()), predicted))
    assert torch.equal(w, before)
