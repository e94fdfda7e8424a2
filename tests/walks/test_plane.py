from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from geomerge import KroneckerMetric, Network
from geomerge.data import Inputs, Normalisation, Split
from geomerge.data.batchnorm import re_estimate
from geomerge.errors import NumericalError
from geomerge.metrics import EuclideanMetric, Metric, functional_change, output_map
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.pruning.masks import SparsityPattern, prunable, sparsity
from geomerge.pruning.schedule import cubic_schedule, restoring_stages, weight_stages
from geomerge.pruning.units import Units, find_units
from geomerge.training import train
from geomerge.walks.objectives import OutputDrift
from geomerge.walks.plane import PlaneWalkOptions, Prescription, Stage, walk_toward_plane
from geomerge.walks.soft_pull import PullWalkOptions, walk_by_pull
from geomerge.walks.walk import WalkPoint

OUTPUT = "tempered"
FAST = PlaneWalkOptions(steps=40, refresh=2)


@dataclass
class Setting:
    """A trained network with BatchNorm, the inputs it was trained on, and others."""

    network: Network
    w: Tensor
    inputs: Inputs
    others: Tensor

    def metric_at(self, w: Tensor) -> KroneckerMetric:
        return estimate_kronecker(self.network, w, [self.inputs.batch(slice(None))], OUTPUT)

    def anchor(self, seed: int = 0) -> OutputDrift:
        phi = output_map(self.network.logits(self.w, self.inputs.batch(slice(None))), OUTPUT)
        return OutputDrift(self.network, phi, self.inputs, OUTPUT, 60, seed)

    def walk(
        self,
        stages: Sequence[Stage],
        start: Tensor | None = None,
        settings: PlaneWalkOptions = FAST,
        settle: Callable[[Tensor], Tensor] | None = None,
    ) -> list[WalkPoint]:
        start = self.w if start is None else start
        anchor = self.anchor()
        return list(walk_toward_plane(start, stages, self.metric_at, anchor, settings, settle))

    def change(self, w: Tensor) -> float:
        before, after = (self.network.logits(one, self.others) for one in (self.w, w))
        return functional_change(before, after, OUTPUT)

    @property
    def units(self) -> dict[str, Units]:
        return find_units(self.network, self.others)


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.manual_seed(0)
    x = torch.randn(600, 2, 4, 4)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        labels = teacher(x).argmax(dim=1)
    module = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip
    network = Network(module)
    inputs = Inputs(x[:300], Normalisation((0.0,), (1.0,)))
    split = Split(inputs, labels[:300])
    w = train(network, network.initial, [split], epochs=20, batch=50)
    return Setting(network, w, inputs, x[300:])


def statistics(network: Network, w: Tensor) -> Tensor:
    return w[network.n_parameters :]


def zeros(network: Network, w: Tensor) -> Tensor:  # (n,), bool
    """Return which prunable weights are 0.0, with no bit set."""
    mask = torch.zeros(network.n, dtype=torch.bool)
    for place in prunable(network).values():
        mask[place] = w[place].view(torch.int32) == 0
    return mask


@pytest.mark.parametrize("kind", ["obs", "obd", "magnitude"])
def test_pruned_weights_are_zero_bit_for_bit_ever_after(setting: Setting, kind: str) -> None:
    network = setting.network
    points = setting.walk(weight_stages(network, setting.w, SparsityPattern(0.7), 5, kind=kind))
    count = sum(place.stop - place.start for place in prunable(network).values())
    wanted = [round(level * count) for level in cubic_schedule(0.0, 0.7, 5)]
    masks = [zeros(network, point.weights) for point in points]
    assert [int(mask.sum()) for mask in masks] == [k for k in wanted for _ in range(2)]
    for before, after in pairwise(masks):
        assert not (before & ~after).any()
    left = [point.distance for point in points]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    for point in points:
        assert torch.equal(statistics(network, point.weights), statistics(network, setting.w))


@pytest.mark.parametrize("nm", [(2, 4), (1, 4)])
def test_patterns_hold_at_the_end(setting: Setting, nm: tuple[int, int]) -> None:
    network = setting.network
    *_, last = setting.walk(weight_stages(network, setting.w, SparsityPattern(nm=nm), 3))
    for name, groups in (("5.weight", (12, 8)), ("7.weight", (3, 3))):
        stays = (last.weights[network.slices[name]] != 0).view(*groups, 4).sum(dim=2)
        assert (stays == nm[0]).all()
    assert last.weights[network.slices["0.weight"]].all()  # two input channels


def test_zeros_of_the_start_stay(setting: Setting) -> None:
    network = setting.network
    start = setting.w.clone()
    place = network.slices["5.weight"]
    start[place][::3] = 0
    before = zeros(network, start)
    for scope, nm, share in (
        ("global", None, 0.6),
        ("per-layer", None, 0.6),
        ("global", (1, 4), 0),
    ):
        stages = weight_stages(network, start, SparsityPattern(share, scope == "per-layer", nm), 3)
        points = setting.walk(stages, start)
        for point in points:
            assert zeros(network, point.weights)[before].all()
        left = [point.distance for point in points]
        assert left == sorted(left, reverse=True)
        assert 1 > left[0] > left[-1] == 0
        if nm is None:
            assert sparsity(points[-1].weights, prunable(network)) == pytest.approx(share, abs=3e-3)


def test_a_start_sparser_than_the_pattern_only_gets_nearer_to_it(setting: Setting) -> None:
    network = setting.network
    start = setting.w.clone()
    for name in ("5.weight", "7.weight"):
        start[network.slices[name]][torch.arange(start[network.slices[name]].numel()) % 4 != 0] = 0
    before = zeros(network, start)
    points = setting.walk(weight_stages(network, start, SparsityPattern(nm=(2, 4)), 2), start)
    for point in points:
        assert torch.equal(zeros(network, point.weights), before)
        assert 0 <= point.distance < 1


def test_the_walk_changes_the_function_less_than_one_blow(setting: Setting) -> None:
    network = setting.network
    settings = PlaneWalkOptions(steps=120)
    *_, last = setting.walk(
        weight_stages(network, setting.w, SparsityPattern(0.8), 6), settings=settings
    )
    plane = weight_stages(network, setting.w, SparsityPattern(0.8), 1, kind="magnitude")[0]
    at_once = plane(setting.w, EuclideanMetric()).target
    places = prunable(network)
    assert sparsity(at_once, places) == sparsity(last.weights, places)
    assert setting.change(last.weights) < 0.5 * setting.change(at_once)


def test_the_others_make_up_for_a_prescribed_move(setting: Setting) -> None:
    metric = setting.metric_at(setting.w)
    stages = weight_stages(setting.network, setting.w, SparsityPattern(0.6), 1)
    first, second = setting.walk(stages)
    target = weight_stages(setting.network, setting.w, SparsityPattern(0.6), 1)[0](
        setting.w, metric
    ).target
    alone = target - setting.w
    assert first.predicted < 0.5 * metric.inner(alone, alone)
    assert setting.change(second.weights) < setting.change(first.weights) < setting.change(target)


def test_without_stages_there_is_no_walk(setting: Setting) -> None:
    assert setting.walk([]) == []


@pytest.mark.parametrize("stages", [1, 3, 7])
def test_all_steps_are_taken_and_twice_as_many_at_the_end(setting: Setting, stages: int) -> None:
    calls: list[int] = []
    reached = 0

    def anchor(w: Tensor) -> tuple[float, Tensor]:
        calls.append(reached)
        return 0.0, torch.zeros_like(w)

    walk = PlaneWalkOptions(steps=40)
    for _ in walk_toward_plane(
        setting.w, weight_stages(setting.network, setting.w, SparsityPattern(0.5), stages),
        lambda w: EuclideanMetric(), anchor, walk,
    ):  # fmt: skip
        reached += 1
    assert len(calls) == 40
    after = [calls.count(2 * k + 1) for k in range(stages)]
    assert after[-1] >= 2 * max(after[:-1], default=0) - 2
    assert max(after[:-1], default=0) - min(after[:-1], default=0) <= 1


def test_the_same_seed_gives_the_same_bits(setting: Setting) -> None:
    one, two = (
        setting.walk(weight_stages(setting.network, setting.w, SparsityPattern(0.7), 3))
        for _ in range(2)
    )
    for p, q in zip(one, two, strict=True):
        assert torch.equal(p.weights, q.weights)
        assert (p.norm, p.predicted, p.distance) == (q.norm, q.predicted, q.distance)


@pytest.mark.parametrize("rate", [5.0, 100.0])
def test_steps_that_are_too_long_are_shortened(setting: Setting, rate: float) -> None:
    plane = weight_stages(setting.network, setting.w, SparsityPattern(0.6), 1)
    points = setting.walk(plane, settings=PlaneWalkOptions(learning_rate=rate, steps=200))
    x = setting.inputs.batch(slice(None))
    logits = [setting.network.logits(one, x) for one in (setting.w, *(p.weights for p in points))]
    moved, settled = (functional_change(logits[0], one, OUTPUT) for one in logits[1:])
    assert settled < moved


def test_a_walk_that_diverges_says_what_to_do(setting: Setting) -> None:
    stages = weight_stages(setting.network, setting.w, SparsityPattern(0.5), 1)
    with pytest.raises(NumericalError, match=r"for every learning rate.*larger `damping`"):
        setting.walk(stages, settings=PlaneWalkOptions(learning_rate=1e30, steps=50))


def test_statistics_are_those_that_the_settled_points_have(setting: Setting) -> None:
    network = setting.network

    def settle(w: Tensor) -> Tensor:
        return re_estimate(network, w, [setting.inputs])

    points = setting.walk(weight_stages(network, setting.w, SparsityPattern(0.6), 2), settle=settle)
    moved, settled = points[0].weights, points[1].weights
    assert torch.equal(statistics(network, moved), statistics(network, setting.w))
    assert torch.equal(statistics(network, settled), statistics(network, settle(moved)))
    assert torch.equal(zeros(network, settled), zeros(network, moved))


@pytest.mark.parametrize("metric", ["kronecker", "euclidean"])
def test_momentum_never_moves_what_is_pinned(setting: Setting, metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    n, trained = setting.network.n, torch.arange(setting.network.n) < setting.network.n_parameters
    order = torch.rand(n, generator=generator)
    target = torch.randn(n, generator=generator)

    def stage(share: float) -> Stage:
        def at(w: Tensor, metric: Metric) -> Prescription:
            pinned = (order < share) & trained
            return Prescription(torch.where(pinned, target, w), trained & ~pinned, 1 - share)

        return at

    def push(w: Tensor) -> tuple[float, Tensor]:
        return 1.0, torch.where(trained, 1.0, 0.0)

    def metric_at(w: Tensor) -> Metric:
        return EuclideanMetric() if metric == "euclidean" else setting.metric_at(setting.w)

    walk = PlaneWalkOptions(steps=60, momentum=0.99)
    points = list(
        walk_toward_plane(setting.w, [stage(0.2), stage(0.5), stage(0.8)], metric_at, push, walk)
    )
    for k, share in enumerate((0.2, 0.5, 0.8)):
        pinned = (order < share) & trained
        for point in points[2 * k :]:
            assert torch.equal(point.weights[pinned], target[pinned])
            assert torch.equal(point.weights[~trained], setting.w[~trained])
        free = trained & ~pinned
        moved = points[2 * k + 1].weights - points[2 * k].weights
        assert (moved[free] != 0).float().mean() > 0.9


def without(setting: Setting) -> tuple[Tensor, dict[str, list[int]]]:
    """Return weights without some units, the others moved, and which are gone."""
    generator = torch.Generator().manual_seed(1)
    w = setting.w + 0.05 * torch.randn(setting.w.shape, generator=generator)
    w[setting.network.slices["1.running_var"]].abs_()
    gone = {"0": [0, 3, 5], "5": [1, 2, 7, 10]}
    for layer, found in gone.items():
        setting.units[layer].clear(w, found)
    return w, gone


@pytest.mark.parametrize("stages", [1, 2, 30])
def test_units_come_back_bit_for_bit(setting: Setting, stages: int) -> None:
    network, units = setting.network, setting.units
    start, gone = without(setting)
    returning = {"0": [5, 0], "5": [10, 1, 2]}
    queue = [(layer, unit) for layer, found in returning.items() for unit in found]
    points = setting.walk(
        restoring_stages(network, setting.w, units, returning, stages), start,
        settings=PlaneWalkOptions(steps=20),
    )  # fmt: skip
    assert len(points) == 2 * min(stages, 5)
    for k, point in enumerate(points):
        back = queue[: round(5 * (k // 2 + 1) / min(stages, 5))]
        assert point.distance == pytest.approx(1 - len(back) / 5)
        away = torch.zeros(network.n, dtype=torch.bool)
        for layer, found in gone.items():
            away[units[layer].places([u for u in found if (layer, u) not in back])] = True
        assert not point.weights[away].any()
        held = torch.zeros(network.n, dtype=torch.bool)
        for layer, unit in back:
            for part in units[layer].parts:  # statistics too
                held[part.places(torch.tensor([unit]))] = True
        assert torch.equal(point.weights[held & ~away], setting.w[held & ~away])
        assert held[network.n_parameters :].sum() == 2 * sum(layer == "0" for layer, _ in back)
        others = torch.arange(network.n) >= network.n_parameters
        assert torch.equal(point.weights[others & ~held], start[others & ~held])
    assert int(away.sum()) == len(units["0"].places([3]).tolist()) + len(units["5"].places([7])) - 4


@pytest.mark.parametrize("metric", ["kronecker", "euclidean"])
def test_the_pull_ends_on_the_plane(setting: Setting, metric: str) -> None:
    network, places = setting.network, prunable(setting.network)

    def plane(w: Tensor, metric: Metric) -> Prescription:
        return weight_stages(network, setting.w, SparsityPattern(0.6), 1)[0](w, metric)

    def metric_at(w: Tensor) -> Metric:
        return EuclideanMetric() if metric == "euclidean" else setting.metric_at(w)

    points = list(walk_by_pull(setting.w, plane, metric_at, PullWalkOptions(steps=6, refresh=3)))
    assert len(points) == 7
    assert sparsity(points[-1].weights, places) == pytest.approx(0.6, abs=2e-3)
    assert all(sparsity(point.weights, places) < 0.1 for point in points[:-1])
    left = [point.distance for point in points]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    for point in points:
        assert torch.equal(statistics(network, point.weights), statistics(network, setting.w))
    # On the plane already it stays there.
    (only,) = walk_by_pull(points[-1].weights, plane, metric_at, PullWalkOptions())
    assert torch.equal(only.weights, points[-1].weights)
    # The Euclidean pull is straight: its projection is all that is left of the way.
    if metric == "euclidean":
        target = plane(setting.w, EuclideanMetric()).target
        torch.testing.assert_close(points[-1].weights, target)
