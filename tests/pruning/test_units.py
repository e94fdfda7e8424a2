from __future__ import annotations

import pytest
import torch
from torch import nn
from unit_networks import NETWORKS, Between, Tied, images, network

from geomerge import Network
from geomerge.errors import OptionError
from geomerge.pruning.parts import Role
from geomerge.pruning.shrink import removed_units, shrink
from geomerge.pruning.units import Units, find_units, unit_named


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[Network, torch.Tensor]:
    make, x = NETWORKS[request.param]
    return network(make()), x


def test_zero_units_and_no_units_compute_the_same(case: tuple[Network, torch.Tensor]) -> None:
    net, x = case
    units = find_units(net, x)
    assert units
    for name, one in units.items():
        some = torch.randperm(one.count)[: one.count // 2].tolist()
        masked = net.initial.clone()
        masked[one.places(some)] = 0
        small = shrink(net, net.initial, {name: some}, x)
        expected = net.logits(masked, x)
        torch.testing.assert_close(small(x), expected, rtol=1e-11, atol=1e-11)
        assert not torch.allclose(expected, net.logits(net.initial, x), rtol=1e-3)
        assert removed_units(net, masked, units) == {one.layer: sorted(some)}


def makers(units: Units, indices: list[int]) -> torch.Tensor:
    """Places of rows, biases, scales and shifts."""
    parts = [part for part in units.parts if part.role is Role.PRODUCER]
    return torch.cat([part.places(units.chosen(indices)) for part in parts])


def test_weights_that_make_a_unit_do_not_matter_where_none_reads_it(
    case: tuple[Network, torch.Tensor],
) -> None:
    net, x = case
    for one in find_units(net, x).values():
        unread = net.initial.clone()
        unread[one.consumer_places([1])] = 0
        other = unread.clone()
        own = makers(one, [1])
        other[own[~torch.isin(own, one.consumer_places([1]))]] += 1.0
        assert not torch.equal(other, unread)
        torch.testing.assert_close(net.logits(other, x), net.logits(unread, x), rtol=0, atol=1e-13)


def test_places_are_those_that_make_and_those_that_read(case: tuple[Network, torch.Tensor]) -> None:
    net, x = case
    for one in find_units(net, x).values():
        parts = torch.cat([makers(one, [2, 0]), one.consumer_places([0, 2])])
        assert torch.equal(one.places([0, 2, 0]), parts.unique())
        assert one.places([]).numel() == 0
        w = net.initial.clone()
        one.clear(w, [0, 2])
        changed = torch.zeros(net.n, dtype=torch.bool)
        changed[one.places([0, 2])] = True
        assert torch.equal(w == 0, changed)


def test_units_by_hand() -> None:
    net = network(Tied())
    units = find_units(net, images())
    tied = {"stem", "outer", "depthwise"}
    assert set(units) == {*tied, "inner", "hidden"}
    stem = units["stem"]
    assert set(stem.layers) == tied
    assert all(units[name] is stem for name in tied)
    assert stem.layer == "stem"
    expected = {name: torch.zeros(shape) for name, shape in net.shapes.items()}
    for name in ("stem", "outer", "depthwise", "norm"):
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in expected:
                expected[f"{name}.{kind}"][4] = 1
    expected["inner.weight"][:, 4] = 1
    expected["hidden.weight"][:, 16:20] = 1  # 4 of the flattened map for each channel
    places = torch.nonzero(net.ravel(expected)).flatten()
    assert torch.equal(stem.places([4]), places)
    assert stem.places([4]).dtype == torch.int64


def test_the_network_stays_as_it_is() -> None:
    net = network(Tied())
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    generator = torch.random.get_rng_state()
    find_units(net, images())
    shrink(net, net.initial, {"stem": [1]}, images())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    for module in net.module.modules():
        assert not module._forward_hooks
        assert not module.training
    assert not any(p.requires_grad for p in net.module.parameters())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (nn.LayerNorm(6), "a LayerNorm that scales units by each other"),
        (nn.GroupNorm(2, 6), "a GroupNorm that scales units by each other"),
        (nn.PReLU(6), "a PReLU"),
        ("softmax", "cannot be traced"),
        ("roll", "cannot be traced"),
        ("norm", "cannot be traced"),
        ("gate", "be removed one by one"),
        ("again", "the network's outputs"),
    ],
)
def test_units_that_cannot_go_say_why(change: nn.Module | str, why: str) -> None:
    net = network(Between(change, 3 if change == "gate" else 6))
    units = find_units(net, torch.randn(3, 5, dtype=torch.float64))
    assert not units
    with pytest.raises(OptionError, match=f"units of 'first' cannot be removed.*{why}"):
        unit_named(units, "first")
    with pytest.raises(OptionError, match="units of 'second' cannot be removed: they are the n"):
        unit_named(units, "second")


def test_layers_that_share_weights_or_make_them_are_left_out() -> None:
    shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    shared[2].weight = shared[0].weight
    made = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.parametrizations.weight_norm(made[0])
    for module, refused in ((shared, {"0", "2", "4"}), (made, {"0", "4"})):
        units = find_units(Network(module), torch.randn(3, 4))
        assert set(units.refused) == refused
        assert "shared or made from others" in units.refused["0"]
    weight = Between("transposed")
    assert not find_units(Network(weight), torch.randn(3, 5))


def test_groups_of_channels_are_left_out() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 2), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    units = find_units(Network(module), torch.randn(2, 2, 4, 4))
    assert set(units) == {"2"}
    assert "a convolution in groups" in units.refused["0"]


def test_names_and_numbers_that_are_wrong() -> None:
    net = network(Tied())
    units = find_units(net, images())
    with pytest.raises(OptionError, match="did you mean 'hidden'"):
        unit_named(units, "hiden")
    for wrong in (-1, 7):
        with pytest.raises(OptionError, match=f"hidden from 0 to 6, got {wrong}"):
            units["hidden"].places([0, wrong])
    with pytest.raises(OptionError, match="torch-pruning cannot trace"):
        find_units(net, torch.randn(2, 3, dtype=torch.float64))
