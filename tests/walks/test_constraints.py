from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.data import Inputs, Normalisation
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.testing import dense_kronecker
from geomerge.walks.constraints import Constraint, Constraints, KLConstraint, QuadraticConstraint
from geomerge.walks.damping import DampingLearner
from geomerge.walks.objectives import log_probabilities


@pytest.fixture
def setting() -> tuple[Network, KroneckerMetric, KLConstraint, QuadraticConstraint]:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double())
    network.initial = network.initial.double()
    x = torch.randn(40, 5, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x])
    targets = network.logits(network.initial, x).log_softmax(dim=1)
    loss = KLConstraint("a", network, x, targets)
    return network, metric, loss, QuadraticConstraint("b", metric, network.initial)


@pytest.mark.parametrize("which", [0, 1])
def test_rows_are_gradients(
    setting: tuple[Network, KroneckerMetric, KLConstraint, QuadraticConstraint], which: int
) -> None:
    network = setting[0]
    kept: Constraint = setting[2 + which]
    w = network.initial + 0.3 * torch.randn(network.n, dtype=torch.float64)
    value, row = kept.row(w)
    assert value == pytest.approx(kept.value(w), rel=1e-9)
    u = torch.randn_like(w)
    slope = (kept.value(w + 1e-5 * u) - kept.value(w - 1e-5 * u)) / 2e-5
    assert float(row @ u) == pytest.approx(slope, rel=1e-6)


def test_lowering_is_the_metric_itself(
    setting: tuple[Network, KroneckerMetric, KLConstraint, QuadraticConstraint],
) -> None:
    network, metric, _, _ = setting
    u = torch.randn(network.n, dtype=torch.float64)
    torch.testing.assert_close(metric.mv(u), dense_kronecker(metric) @ u)


@pytest.mark.parametrize("allowed", [0.0, 0.003, 0.1])
def test_no_step_leaves_its_budgets(
    setting: tuple[Network, KroneckerMetric, KLConstraint, QuadraticConstraint], allowed: float
) -> None:
    network, metric, loss, sketch = setting
    budgets = Constraints([loss, sketch], {"a": allowed, "b": allowed}, {"a": 0.0, "b": 0.0})
    goal = network.initial + torch.randn(network.n, dtype=torch.float64)
    w = network.initial
    for _ in range(30):
        step = budgets.step(w, metric, goal - w, 0.1, 0.05)
        w = w + step.tangent
        assert budgets.within(w)
        assert all(price > 0 for price in step.multipliers.values())
    if allowed:
        assert float((w - network.initial).norm()) > 0
    if allowed < 0.1:
        assert budgets.solved > 0


def test_wide_budgets_change_nothing(
    setting: tuple[Network, KroneckerMetric, KLConstraint, QuadraticConstraint],
) -> None:
    network, metric, loss, _ = setting
    v = torch.randn(network.n, dtype=torch.float64)
    step = Constraints([loss], {"a": 1e6}, {"a": 0.0}).step(network.initial, metric, v, 0.1, 0.2)
    coordinates = metric.coordinates(v)
    free = coordinates.compose(coordinates.scaled(lambda s: 0.1 / (s + 0.1)))
    torch.testing.assert_close(step.tangent, free)
    assert step.multipliers == {}


def test_learned_damping_follows_the_measured_distance(
    setting: tuple[Network, KroneckerMetric, KLConstraint, QuadraticConstraint],
) -> None:
    """The goal lies where damping matters: more of it goes there faster, less of it keeps more."""
    network, metric, _, sketch = setting
    goal = network.initial + 0.5 * torch.randn(network.n, dtype=torch.float64)

    def learned(weight: float) -> float:
        learner = DampingLearner(1e-3, lambda w: weight * metric.mv(w - network.initial))
        w = network.initial
        for _ in range(40):
            damping = learner(w, goal - w)
            coordinates = metric.coordinates(goal - w)
            factor = coordinates.scaled(lambda s, mu=damping: mu / (s + mu))
            learner.remember(metric, goal - w, 0.1)
            w = w + 0.1 * coordinates.compose(factor)
        return damping

    assert learned(0.0) > 1e-3
    assert learned(1e5) < learned(0.0)
    assert sketch.value(network.initial) == 0


def test_targets_of_some_inputs_are_those_inputs() -> None:
    torch.manual_seed(0)
    network = Network(nn.Linear(4, 2))
    inputs = Inputs(torch.randn(30, 4), Normalisation((0.0,), (1.0,)))
    targets = log_probabilities(network, network.initial, inputs)
    kept = KLConstraint("a", network, inputs.batch(slice(3, 9)), targets[3:9])
    assert kept.value(network.initial) == pytest.approx(0, abs=1e-6)


def test_what_is_learned_may_not_fall_back(
    setting: tuple[Network, KroneckerMetric, KLConstraint, QuadraticConstraint],
) -> None:
    network, metric, loss, _ = setting
    start = network.initial + torch.randn(network.n, dtype=torch.float64)
    budgets = Constraints([loss], {"a": 0.01}, {"a": loss.value(start)})
    w = start
    for goal in (network.initial, start):  # there and, as far as it is allowed, back
        for _ in range(60):
            w = w + budgets.step(w, metric, goal - w, 1.0, 0.5).tangent
    assert loss.value(w) <= budgets.limits["a"] * (1 + 1e-5)
    assert budgets.limits["a"] < 0.5 * loss.value(start)
