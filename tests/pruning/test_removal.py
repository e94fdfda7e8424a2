from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from removal_setting import Setting, arrived, make_setting

from geomerge.errors import OptionError
from geomerge.pruning.flops import Sizes, count
from geomerge.pruning.gradual_removal import rate_stages
from geomerge.pruning.obs import Consumers, magnitudes
from geomerge.pruning.removal import Removal, removal_stages
from geomerge.pruning.schedule import cubic_schedule
from geomerge.pruning.shrink import shrink


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting()


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
    assert wanted.compensated is not None
    there = torch.where(wanted.free, wanted.compensated, wanted.target)
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
