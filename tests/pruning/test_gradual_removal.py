from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from removal_setting import Setting, arrived, make_setting
from torch import Tensor, nn

from geomerge import Network
from geomerge.errors import OptionError
from geomerge.pruning.gradual_removal import rate_stages
from geomerge.pruning.obs import Consumers
from geomerge.pruning.removal import Removal
from geomerge.pruning.schedule import cubic_schedule
from geomerge.pruning.units import Units, find_units
from geomerge.walks.constraints import KLConstraint


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting()


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
