from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from geomerge import Network
from geomerge.errors import OptionError
from geomerge.networks.architectures import create_network
from geomerge.pruning.flops import Counts, Sizes, count
from geomerge.pruning.parts import Role
from geomerge.pruning.shrink import removed_units, shrink
from geomerge.pruning.units import Units, find_units, unit_named


class Tied(nn.Module):
    """A stem, a residual block that adds to it, and a flattened map behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 5, 3, padding=1)
        self.outer = nn.Conv2d(5, 6, 1)
        self.outer_norm = nn.BatchNorm2d(6, affine=False)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.hidden = nn.Linear(24, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer_norm(self.outer(functional.silu(self.inner(x))))
        x = functional.max_pool2d(self.depthwise(x), 2)
        return self.head(torch.sigmoid(self.hidden(x.flatten(1))))


class Joined(nn.Module):
    """Features of two convolutions side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 3, 1)
        self.two = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.one(x), self.two(x)], 1)
        return self.head(torch.tanh(self.norm(x)).mean((2, 3)))


class Between(nn.Module):
    """Something between two linear layers."""

    def __init__(self, change: nn.Module | str, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.change = change
        self.second = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if isinstance(self.change, nn.Module):
            return self.second(self.change(x))
        if self.change == "softmax":
            return self.second(x.softmax(1))
        if self.change == "roll":
            return self.second(x.roll(2, 1))
        if self.change == "norm":
            return self.second(functional.layer_norm(x, (6,)))
        if self.change == "gate":
            return self.second(x[:, :3] * torch.sigmoid(x[:, 3:]))
        if self.change == "again":
            return self.second(x) + x[:, :3]
        return functional.linear(x.tanh(), self.first.weight.T)


def network(module: nn.Module) -> Network:
    torch.manual_seed(0)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = 0.5 + torch.rand_like(tensor, dtype=torch.float64)
            tensor.data -= 1.0 if tensor.dim() > 1 else 0.2
    return Network(module)


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(
        count, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


NETWORKS = {
    "tied": (Tied, images()),
    "joined": (Joined, images()),
    "mlp": (lambda: Between(nn.Sigmoid()), images().flatten(1)[:, :5]),
    "vit": (lambda: create_network("vit-cifar", (2, 4, 4), 3, seed=0), images()),
}


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
        ("gate", "go one by one"),
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


def test_flops_are_two_for_each_multiplication() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(80, 2))
    assert count(module, (3, 4, 4)) == Counts(
        parameters=5 * 3 * 9 + 5 + 80 * 2 + 2, flops=2 * (16 * 5 * 3 * 9 + 80 * 2)
    )
    # Attention, which has fused kernels: projections, and scores and values of 6 x 6 tokens.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    assert count(layer, (6, 8)).flops == 2 * (6 * 4 * 8 * 8 + 2 * 6 * 6 * 8 + 6 * 2 * 8 * 16)
