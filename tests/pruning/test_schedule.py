from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from removal_setting import make_setting
from torch import nn

from geomerge import Network
from geomerge.metrics import EuclideanMetric
from geomerge.pruning.masks import SparsityPattern, prunable
from geomerge.pruning.schedule import cubic_schedule, restoring_stages, weight_stages


@pytest.mark.parametrize("share", [0.5, 0.77])
def test_every_layer_ends_with_its_own_share(share: float) -> None:
    torch.manual_seed(0)
    # Rounded layer by layer these shares are more than the rounded share of all.
    network = Network(nn.Sequential(*(nn.Linear(k, j) for k, j in ((3, 1), (1, 3), (3, 5)))))
    stages = weight_stages(network, network.initial, SparsityPattern(share, per_layer=True), 3)
    w = network.initial
    for stage in stages:
        w = stage(w, EuclideanMetric()).target
    for place in prunable(network).values():
        assert int((w[place] == 0).sum()) == round(share * (place.stop - place.start))


@pytest.mark.parametrize(("first", "last"), [(0.0, 0.9), (0.3, 0.5), (0.6, 0.5)])
def test_levels_rise_in_large_steps_then_small_ones(first: float, last: float) -> None:
    levels = cubic_schedule(first, last, 6)
    assert len(levels) == 6
    assert levels[-1] == last
    gaps = [abs(b - a) for a, b in pairwise([first, *levels])]
    assert gaps == sorted(gaps, reverse=True)
    assert sum(gaps) == pytest.approx(abs(last - first))  # and never back
    assert cubic_schedule(first, last, 1) == [last]
    assert cubic_schedule(first, last, 0) == []
    assert cubic_schedule(0.0, 1.0, 2)[0] == pytest.approx(7 / 8)  # 1 - (1 - 1/2)^3


def test_nothing_to_restore_is_no_stage() -> None:
    setting = make_setting()
    network, start = setting.network, setting.network.initial.clone()
    setting.units["0"].clear(start, [1, 3])
    assert restoring_stages(network, start, setting.units, {}, 4) == []
    assert restoring_stages(network, start, setting.units, {"0": []}, 4) == []
    assert len(restoring_stages(network, network.initial, setting.units, {"0": [1, 3]}, 4)) == 2
