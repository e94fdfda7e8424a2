from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from geomerge import KroneckerMetric, Network
from geomerge.errors import OptionError
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.pruning.flops import Sizes, count
from geomerge.pruning.gradual_removal import rate_stages
from geomerge.pruning.obs import Consumers, magnitudes
from geomerge.pruning.removal import Removal, removal_stages
from geomerge.pruning.schedule import cubic_schedule
from geomerge.pruning.shrink import removed_units, shrink
from geomerge.pruning.units import Units, find_units
from geomerge.walks.constraints import KLConstraint
from geomerge.walks.plane import Prescription, Stage


@dataclass
class Setting:
    network: Network
    x: Tensor
    units: dict[str, Units]
    metric: KroneckerMetric

    def removal(self, counts: Mapping[str, int]) -> Removal:
        units = {layer: self.units[layer] for layer in counts}
        return Removal(units, {k: range(one.count) for k, one in units.items()}, counts)

    def walk(self, stages: Sequence[Stage], start: Tensor | None = None) -> list[Tensor]:
        """Go where the stages want, with nothing made up."""
        points = [self.network.initial if start is None else start]
        for stage in stages:
            points.append(arrived(points[-1], stage(points[-1], self.metric)))
        return points

    def gone(self, w: Tensor) -> dict[str, list[int]]:
        return removed_units(self.network, w, self.units)


def arrived(w: Tensor, wanted: Prescription) -> Tensor:
    return torch.where(wanted.free, w, wanted.target)


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip
    network = Network(module.double())
    x = torch.randn(40, 2, 4, 4, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], sign_vectors=None)
    return Setting(network, x, dict(find_units(network, x)), metric)


@pytest.mark.parametrize("choice", ["greedy", "magnitude"])
@pytest.mark.parametrize("number", [1, 3, 50])
def test_as_many_go_as_wanted(setting: Setting, choice: str, number: int) -> None:
    counts = {"0": 3, "5": 7}
    stages = removal_stages(setting.network, setting.removal(counts), {}, number, choice)
    assert len(stages) == min(number, 10)
    points = setting.walk(stages)
    for level, w in zip(cubic_schedule(0.0, 1.0, len(stages)), points[1:], strict=True):
        gone = {layer: len(found) for layer, found in setting.gone(w).items()}
        assert gone == {k: round(level * n) for k, n in counts.items() if round(level * n)}
    for before, after in pairwise(map(setting.gone, points)):
        assert all(set(found) <= set(after[layer]) for layer, found in before.items())


def test_only_candidates_go_beside_those_gone_before(setting: Setting) -> None:
    start = setting.network.initial.clone()
    gone = {"5": [0, 4], "0": [7]}
    for layer, found in gone.items():
        setting.units[layer].clear(start, found)
    layers = {layer: setting.units[layer] for layer in gone}
    removal = Removal(layers, {"5": [1, 2, 3, 5], "0": []}, {"5": 2, "0": 0})
    for choice in ("greedy", "magnitude"):
        stages = removal_stages(setting.network, removal, gone, 4, choice)
        assert len(stages) == 2
        *_, last = setting.walk(stages, start)
        found = setting.gone(last)
        assert found["0"] == [7]
        assert {0, 4} < set(found["5"]) < {0, 1, 2, 3, 4, 5}
        assert len(found["5"]) == 4


@pytest.mark.parametrize("layer", ["0", "5", "7"])
def test_the_cheapest_goes_first_beside_those_compensated(setting: Setting, layer: str) -> None:
    network, units, w = setting.network, setting.units[layer], setting.network.initial
    number = units.count - 2
    (stage,) = removal_stages(network, setting.removal({layer: number}), {}, 1)
    found = setting.gone(arrived(w, stage(w, setting.metric)))[layer]
    consumers = Consumers(units, setting.metric, w, [])
    expected = []
    for _ in range(number):
        expected.append(int(consumers.costs().argmin()))
        consumers.remove(expected[-1])
    assert found == sorted(expected)


def test_the_smallest_go_first(setting: Setting) -> None:
    network, w = setting.network, setting.network.initial
    for layer, number in (("0", 3), ("5", 6)):
        removal = setting.removal({layer: number})
        (stage,) = removal_stages(network, removal, {}, 1, "magnitude")
        order = magnitudes(network, setting.units[layer], w).argsort().tolist()
        found = setting.gone(arrived(w, stage(w, setting.metric)))[layer]
        assert found == sorted(order[:number])


def test_what_is_gone_is_zero_and_pinned_and_all_else_is_free(setting: Setting) -> None:
    network, w = setting.network, setting.network.initial
    (stage,) = removal_stages(network, setting.removal({"0": 2, "5": 3}), {}, 1)
    wanted = stage(w, setting.metric)
    gone = setting.gone(arrived(w, wanted))
    zero = torch.zeros(network.n, dtype=torch.bool)
    for layer, found in gone.items():
        zero[setting.units[layer].places(found)] = True
    assert not wanted.target[zero].any()
    assert torch.equal(wanted.target[~zero], w[~zero])
    trained = torch.arange(network.n) < network.n_parameters
    assert torch.equal(wanted.free, trained & ~zero)
    assert wanted.left == 0


@pytest.mark.parametrize("choice", ["greedy", "magnitude", "rates"])
@pytest.mark.parametrize("layer", ["0", "5"])
def test_the_layers_that_read_make_up_for_what_is_gone(
    setting: Setting, layer: str, choice: str
) -> None:
    network, w = setting.network, setting.network.initial.clone()
    setting.units[layer].clear(w, [1])
    removal = replace(setting.removal({layer: 4}), candidates={layer: [0, 2, 3, 4, 5, 6, 7]})
    gone = {layer: [1]}
    stage = (
        rate_stages(network, removal, gone, 1)
        if choice == "rates"
        else removal_stages(network, removal, gone, 1, choice)
    )[-1]
    wanted = stage(w, setting.metric)
    assert wanted.made_up is not None
    there = torch.where(wanted.free, wanted.made_up, wanted.target)
    found = setting.gone(there)[layer]
    assert len(found) == 5
    consumers = Consumers(setting.units[layer], setting.metric, w, [1])
    for unit in found:
        if unit != 1:
            consumers.remove(unit)
    best = wanted.target.clone()
    consumers.write(best)
    torch.testing.assert_close(there, torch.where(wanted.free, best, wanted.target))
    # No other layers move.
    index = torch.arange(network.n)
    read = {"0": "5", "5": "7"}[layer]
    for name in network.slices:
        same = torch.equal(there[network.slices[name]], wanted.target[network.slices[name]])
        assert same == (name.partition(".")[0] != read), name
    assert torch.equal(there[index >= network.n_parameters], w[network.n_parameters :])


@pytest.mark.parametrize("choice", ["greedy", "magnitude"])
@pytest.mark.parametrize("what", ["flops", "parameters"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_units_go_until_the_size_is_reached(
    setting: Setting, what: str, share: float, choice: str
) -> None:
    network = setting.network
    sizes = Sizes(network, setting.units, setting.x)

    def size(removed: Mapping[str, int]) -> int:
        return int(getattr(sizes.without(removed), what))

    start = size({})
    limit = round((1 - share) * start)
    every = {layer: range(one.count) for layer, one in setting.units.items()}
    removal = Removal(setting.units, every, None, size, limit)
    stages = removal_stages(network, removal, {}, 4, choice)
    assert len(stages) == 4
    points = setting.walk(stages)
    for level, w in zip(cubic_schedule(0.0, 1.0, 4), points[1:], strict=True):
        counts = {layer: len(found) for layer, found in setting.gone(w).items()}
        assert size(counts) <= start + level * (limit - start)
        assert all(number < setting.units[layer].count for layer, number in counts.items())
    # Not more than needed: with some unit back it would be too large.
    back = [size({**counts, layer: number - 1}) for layer, number in counts.items()]
    assert max(back) > limit
    # And it is the size of the network that is really smaller.
    small = shrink(network, points[-1], setting.gone(points[-1]), setting.x)
    assert getattr(count(small, (2, 4, 4)), what) == size(counts)


def test_a_size_below_one_unit_a_layer_is_refused(setting: Setting) -> None:
    sizes = Sizes(setting.network, setting.units, setting.x)
    least = sizes.without({k: one.count - 1 for k, one in setting.units.items()}).parameters
    every = {layer: range(one.count) for layer, one in setting.units.items()}
    removal = Removal(
        setting.units, every, None, lambda removed: sizes.without(removed).parameters, least
    )
    for choice in ("greedy", "magnitude"):
        *_, last = setting.walk(removal_stages(setting.network, removal, {}, 2, choice))
        for layer, found in setting.gone(last).items():
            assert len(found) == setting.units[layer].count - 1
        smaller = replace(removal, limit=least - 1)
        with pytest.raises(OptionError, match=f"got {least - 1}, and .* leaves {least};"):
            setting.walk(removal_stages(setting.network, smaller, {}, 2, choice))


def left_of(units: Units, start: Tensor, w: Tensor) -> Tensor:  # (units,)
    """How much is left of the columns that read each unit."""
    norms = [
        torch.stack([v[units.consumer_places([k])].norm() for k in range(units.count)])
        for v in (w, start)
    ]
    return norms[0] / norms[1]


@pytest.mark.parametrize("layer", ["0", "5"])
def test_rates_make_the_progress_of_every_stage(setting: Setting, layer: str) -> None:
    units, start = setting.units[layer], setting.network.initial
    stages = rate_stages(setting.network, setting.removal({layer: 4}), {}, 5)
    assert len(stages) == 5
    w, before = start, torch.ones(units.count, dtype=torch.float64)
    for level, stage in zip(cubic_schedule(0.0, 1.0, 5)[:-1], stages, strict=False):
        wanted = stage(w, setting.metric)
        w = arrived(w, wanted)
        left = left_of(units, start, w)
        assert float((1 - left).sum()) == pytest.approx(4 * level, abs=1e-5)
        assert (left <= before + 1e-6).all()  # nothing comes back
        assert wanted.left == pytest.approx(1 - level)
        before = left
    last = stages[-1](w, setting.metric)
    end = arrived(w, last)
    gone = setting.gone(end)[layer]
    assert len(gone) == 4
    assert last.left == 0
    zero = torch.zeros(len(w), dtype=torch.bool)
    zero[units.places(gone)] = True
    assert torch.equal(end[~zero], w[~zero])  # the others stay as they are
    trained = torch.arange(len(w)) < setting.network.n_parameters
    assert torch.equal(last.free, trained & ~zero)


def test_what_is_half_gone_stands_still_between_stages(setting: Setting) -> None:
    network, units, w = setting.network, setting.units["5"], setting.network.initial
    wanted = rate_stages(network, setting.removal({"5": 3}), {}, 4)[0](w, setting.metric)
    left = left_of(units, w, wanted.target)
    half = ((left > 1e-9) & (left < 1 - 1e-9)).nonzero()[:, 0].tolist()
    assert half
    pinned = torch.zeros(network.n, dtype=torch.bool)
    pinned[units.consumer_places(half)] = True
    pinned[units.places((left == 0).nonzero()[:, 0].tolist())] = True
    trained = torch.arange(network.n) < network.n_parameters
    assert torch.equal(wanted.free, trained & ~pinned)
    for unit in half:  # all columns of a unit by the same factor
        at = units.consumer_places([unit])
        torch.testing.assert_close(wanted.target[at], float(left[unit]) * w[at])


@pytest.mark.parametrize("layer", ["0", "5"])
def test_rates_cost_less_than_any_others_that_make_the_progress(
    setting: Setting, layer: str
) -> None:
    network, units, w = setting.network, setting.units[layer], setting.network.initial
    program = Consumers(units, setting.metric, w, []).program()
    stage = rate_stages(network, setting.removal({layer: 3}), {}, 2)[0]
    level = 3 * cubic_schedule(0.0, 1.0, 2)[0]
    rates = 1 - left_of(units, w, stage(w, setting.metric).target)
    cost = program.cost(rates)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = torch.rand(units.count, generator=generator, dtype=torch.float64)
        other = (other * level / other.sum()).clamp(max=1)
        mixed = rates + 0.1 * (other - rates)
        if float(other.sum()) >= level - 1e-9:
            assert program.cost(other) >= cost * (1 - 1e-6)
            assert program.cost(mixed) >= cost * (1 - 1e-6)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_last_stage_takes_what_costs_least(setting: Setting, number: int) -> None:
    network, units = setting.network, setting.units["5"]
    start = network.initial.clone()
    start[units.consumer_places([0, 1, 2, 3, 6])] *= 50
    *_, last = setting.walk(rate_stages(network, setting.removal({"5": 5}), {}, number), start)
    assert setting.gone(last) == {"5": [4, 5, 7, 8, 9]}


def test_rates_of_two_layers_beside_units_gone_before(setting: Setting) -> None:
    network = setting.network
    start = network.initial.clone()
    gone = {"0": [7, 2], "7": [1]}
    for layer, found in gone.items():
        setting.units[layer].clear(start, found)
    layers = {layer: setting.units[layer] for layer in ("0", "5", "7")}
    candidates = {"0": [0, 1, 3, 4], "5": range(10), "7": []}
    removal = Removal(layers, candidates, {"0": 2, "5": 3, "7": 0})
    *points, last = setting.walk(rate_stages(network, removal, gone, 3), start)
    for w in points:
        found = setting.gone(w)
        assert all(set(units) <= set(found[layer]) for layer, units in gone.items())
    found = setting.gone(last)
    assert found["7"] == [1]
    assert len(found["5"]) == 3
    assert {2, 7} < set(found["0"]) < {0, 1, 2, 3, 4, 7}
    assert len(found["0"]) == 4


def kept_classes(setting: Setting) -> list[KLConstraint]:
    log_p = setting.network.logits(setting.network.initial, setting.x).log_softmax(dim=1)
    labels = torch.arange(len(setting.x)) % 3
    return [
        KLConstraint(f"class {k}", setting.network, setting.x[labels == k], log_p[labels == k])
        for k in range(3)
    ]


def test_budgets_have_prices_where_they_bind(setting: Setting) -> None:
    network, kept, w = setting.network, kept_classes(setting), setting.network.initial
    # Where the network stands no class has lost anything and all slopes vanish: step aside.
    w = w + 0.3 * torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(5))
    w[network.n_parameters :] = network.initial[network.n_parameters :]
    units = setting.units["5"]
    consumers = Consumers(units, setting.metric, w, [])
    rows = [(one.name, one.value(w), consumers.slopes(one.row(w)[1])) for one in kept]

    def bounded(allowed: float) -> tuple[Mapping[str, float], dict[str, float], float]:
        """Return prices, what each class loses to first order, and the cost."""
        stage = rate_stages(network, setting.removal({"5": 3}), {}, 3, kept, allowed)[0]
        wanted = stage(w, setting.metric)
        rates = 1 - left_of(units, w, wanted.target)
        assert float(rates.sum()) == pytest.approx(3 * cubic_schedule(0, 1, 3)[0], abs=1e-6)
        lost = {name: value + float(slopes @ rates) for name, value, slopes in rows}
        return wanted.prices, lost, consumers.program().cost(rates)

    prices, lost, cost = bounded(10.0)
    assert not prices
    worst = max(lost, key=lambda name: lost[name])
    for less in (1e-3, 1e-2):
        allowed = lost[worst] - less
        prices, kept_now, more = bounded(allowed)
        assert prices[worst] > 0
        assert all(value <= allowed + 1e-6 for value in kept_now.values())
        assert kept_now[worst] == pytest.approx(allowed, abs=1e-6)
        assert more > cost


def test_rates_refuse_what_they_cannot_do(setting: Setting) -> None:
    every = {layer: range(one.count) for layer, one in setting.units.items()}
    sized = Removal(setting.units, every, None, lambda removed: 0, 0)
    with pytest.raises(OptionError, match="needs numbers of units, got a size"):
        rate_stages(setting.network, sized, {}, 3)
    network = Network(nn.Sequential(nn.Linear(2, 301), nn.ReLU(), nn.Linear(301, 2)))
    units = dict(find_units(network, torch.randn(2, 2)))
    removal = Removal(units, {"0": range(301)}, {"0": 5})
    with pytest.raises(OptionError, match="at most 300 units to choose from, got 301"):
        rate_stages(network, removal, {}, 3)
    few = replace(removal, candidates={"0": range(300)})
    assert len(rate_stages(network, few, {}, 3)) == 3
