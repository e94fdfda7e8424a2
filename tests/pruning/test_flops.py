from __future__ import annotations

import pytest
import torch
from torch import nn
from unit_networks import NETWORKS, network

from geomerge import Network
from geomerge.pruning.flops import Counts, Sizes, count
from geomerge.pruning.shrink import shrink
from geomerge.pruning.units import find_units


def test_flops_are_two_for_each_multiplication() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(80, 2))
    assert count(module, (3, 4, 4)) == Counts(
        parameters=5 * 3 * 9 + 5 + 80 * 2 + 2, flops=2 * (16 * 5 * 3 * 9 + 80 * 2)
    )
    # Attention, which has fused kernels: projections, and scores and values of 6 x 6 tokens.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    assert count(layer, (6, 8)).flops == 2 * (6 * 4 * 8 * 8 + 2 * 6 * 6 * 8 + 6 * 2 * 8 * 16)


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[Network, torch.Tensor]:
    make, x = NETWORKS[request.param]
    return network(make()), x


def test_sizes_are_those_of_networks_that_are_really_smaller(
    case: tuple[Network, torch.Tensor],
) -> None:
    net, x = case
    shape = tuple(x.shape[1:])
    units = find_units(net, x)
    sizes = Sizes(net, units, x)
    sets = {one.layer: one for one in units.values()}
    assert sizes.without({}) == sizes.without(dict.fromkeys(sets, 0)) == count(net.module, shape)
    generator = torch.Generator().manual_seed(2)
    some = [{layer: 1} for layer in sets]
    for _ in range(3):  # of all layers at once, for which what they share goes only once
        some.append({
            layer: int(torch.randint(1, one.count, (), generator=generator))
            for layer, one in sets.items()
        })  # fmt: skip
    for removed in some:
        small = shrink(net, net.initial, {k: range(v) for k, v in removed.items()}, x)
        assert sizes.without(removed) == count(small, shape)
        assert sizes.without(removed).flops < sizes.without({}).flops
