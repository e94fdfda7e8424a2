from __future__ import annotations

import weakref

import pytest
import torch

from geomerge import Network
from geomerge.data import Inputs, Normalisation
from geomerge.errors import NumericalError
from geomerge.metrics import EuclideanMetric, functional_change
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.walks.objectives import KLToTeacher, log_probabilities
from geomerge.walks.walk import (
    FunctionWalkOptions,
    WeightWalkOptions,
    walk_straight,
    walk_toward_function,
    walk_toward_weights,
)


@pytest.fixture
def setting() -> tuple[Network, torch.Tensor, Inputs]:
    torch.manual_seed(0)
    network = Network(torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(),
                                          torch.nn.Linear(8, 3)))  # fmt: skip
    target = network.initial + 0.5 * torch.randn(network.n)
    return network, target, Inputs(torch.randn(200, 6), Normalisation((0.0,), (1.0,)))


def test_euclidean_walk_is_the_straight_line(
    setting: tuple[Network, torch.Tensor, Inputs],
) -> None:
    network, target, _ = setting
    gap = target - network.initial
    points = list(
        walk_toward_weights(
            network.initial, target, lambda w: EuclideanMetric(), WeightWalkOptions(radius=0.1)
        )
    )
    for k, point in enumerate(points, 1):
        expected = network.initial + gap * (0.1 * k / float(gap.norm()))
        torch.testing.assert_close(point.weights, expected, rtol=1e-4, atol=1e-5)


def test_walk_toward_weights_keeps_the_function_better_than_the_line(
    setting: tuple[Network, torch.Tensor, Inputs],
) -> None:
    network, target, inputs = setting
    x = inputs.batch(slice(0, None))

    def metric_at(w: torch.Tensor):  # type: ignore[no-untyped-def]
        return estimate_kronecker(network, w, [x])

    def drift(w: torch.Tensor) -> float:
        return functional_change(
            network.outputs(network.initial, x), network.outputs(w, x), "hellinger"
        )

    walk = WeightWalkOptions(radius=0.05, least=1e-4, until=0.6, refresh=5)
    *_, last = walk_toward_weights(network.initial, target, metric_at, walk)
    gap = target - network.initial
    share = 1 - float((target - last.weights).norm() / gap.norm())
    assert share > 0.2
    assert drift(last.weights) < 0.5 * drift(network.initial + share * gap)


def test_straight_steps_end_at_the_target_bit_for_bit(
    setting: tuple[Network, torch.Tensor, Inputs],
) -> None:
    network, target, _ = setting
    points = list(walk_straight(network.initial, target, EuclideanMetric(), 7))
    assert torch.equal(points[-1].weights, target)
    total = float((target - network.initial).norm())
    assert sum(p.norm for p in points) == pytest.approx(total, rel=1e-5)
    assert sum(p.predicted**0.5 for p in points) == pytest.approx(total, rel=1e-5)


def test_walk_toward_a_function_reaches_it_and_predicts_its_steps(
    setting: tuple[Network, torch.Tensor, Inputs],
) -> None:
    network, target, inputs = setting
    metric = estimate_kronecker(network, network.initial, inputs.batches(100))
    direction = KLToTeacher(
        network, log_probabilities(network, target, inputs), inputs, batch=50, seed=0
    )
    points = list(
        walk_toward_function(
            network.initial, lambda w: metric, [direction], FunctionWalkOptions(0.1, steps=300)
        )
    )
    assert points[-1].distance < 0.1 * points[0].distance
    before = network.initial
    for point in points[:5]:
        theta = point.weights - before
        assert point.predicted == pytest.approx(metric.inner(theta, theta), rel=1e-2)
        before = point.weights


@pytest.mark.parametrize(("last", "diverges"), [(2.3, False), (2.5, True), (float("nan"), True)])
def test_a_walk_whose_mean_distance_rises_far_has_diverged(last: float, diverges: bool) -> None:
    """Three turns of two teachers: twice the first mean of 0.55, plus 0.1, is 1.2."""
    known = iter([0.0, 1.1, 2.0, 0.3, 0.0, last])
    walk = FunctionWalkOptions(1e-3, steps=3, rise=2.0)
    directions = [lambda w: (next(known), w)] * 2
    points = walk_toward_function(torch.ones(3), lambda w: EuclideanMetric(), directions, walk)
    for _ in range(5):
        next(points)
    if diverges:
        with pytest.raises(NumericalError):
            next(points)
    else:
        assert len(list(points)) == 1


def test_small_damping_keeps_more_of_the_function(
    setting: tuple[Network, torch.Tensor, Inputs],
) -> None:
    network, target, inputs = setting
    kept = Inputs(torch.randn(200, 6) * torch.tensor([2, 1, 1, 0, 0, 0]), inputs.normalisation)
    metric = estimate_kronecker(network, network.initial, kept.batches(100))
    x = kept.batch(slice(0, None))
    drifts = []
    for damping in (1e-5, 1e-3, 1.0):
        direction = KLToTeacher(
            network, log_probabilities(network, target, inputs), inputs, batch=50, seed=0
        )
        walk = FunctionWalkOptions(damping, steps=60, learning_rate=0.1)
        *_, last = walk_toward_function(network.initial, lambda w: metric, [direction], walk)
        before, after = (network.outputs(w, x) for w in (network.initial, last.weights))
        drifts.append(functional_change(before, after, "hellinger"))
    assert drifts == sorted(drifts)


def test_no_metric_is_held_while_the_next_is_measured(
    setting: tuple[Network, torch.Tensor, Inputs],
) -> None:
    network, target, inputs = setting
    known: list[weakref.ref[EuclideanMetric]] = []

    def metric_at(w: torch.Tensor) -> EuclideanMetric:
        assert all(ref() is None for ref in known)
        metric = EuclideanMetric()
        known.append(weakref.ref(metric))
        return metric

    targets = log_probabilities(network, target, inputs)
    direction = KLToTeacher(network, targets, inputs, 50, 0)
    function = FunctionWalkOptions(1e-3, steps=4, refresh=(0, 2))
    list(walk_toward_function(network.initial, metric_at, [direction], function))
    assert len(known) == 2
    weights = WeightWalkOptions(steps=5, radius=0.01, refresh=2)
    list(walk_toward_weights(network.initial, target, metric_at, weights))
    assert len(known) == 5
