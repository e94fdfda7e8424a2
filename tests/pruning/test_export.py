from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from geomerge import Network
from geomerge.errors import OptionError
from geomerge.pruning.masks import prune_form


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).double()


def random_mask(net: Network) -> torch.Tensor:
    kept = torch.ones(net.n, dtype=torch.bool)
    for name in ("0.weight", "4.weight", "4.bias"):
        place = net.slices[name]
        kept[place] = torch.rand(place.stop - place.start) > 0.4
    return kept


@pytest.mark.parametrize("identity", [True, False])
def test_plain_modules_load_it(identity: bool) -> None:
    plain = small_net()
    net = Network(copy.deepcopy(plain))
    kept = random_mask(net)
    form = prune_form(net, net.initial, kept)
    for layer, kind in ((plain[0], "weight"), (plain[4], "weight"), (plain[4], "bias")):
        if identity:
            prune.identity(layer, kind)
        else:
            prune.custom_from_mask(layer, kind, torch.ones_like(getattr(layer, kind)))
    plain.load_state_dict(form, strict=True)
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(plain.eval()(x), net.logits(net.initial * kept, x))
    prune.remove(plain[0], "weight")
    assert torch.equal(plain.state_dict()["0.weight"] != 0, net.unravel(kept)["0.weight"])


def test_without_pruned_weights_it_is_the_state_dict() -> None:
    net = Network(small_net())
    form = prune_form(net, net.initial, torch.ones(net.n, dtype=torch.bool))
    expected = net.state_dict(net.initial)
    assert list(form) == list(expected)
    assert all(torch.equal(form[k], expected[k]) for k in form)


def test_masks_that_cannot_be_are_refused() -> None:
    net = Network(small_net())
    kept = random_mask(net)
    for wrong in (kept.float(), kept[1:]):
        with pytest.raises(OptionError, match=f"a mask of {net.n} bools"):
            prune_form(net, net.initial, wrong)
    kept[net.slices["1.running_mean"]] = False
    with pytest.raises(OptionError, match="running statistics"):
        prune_form(net, net.initial, kept)
