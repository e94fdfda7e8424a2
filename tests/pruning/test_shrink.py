from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.errors import CheckpointError, OptionError, RunError
from geomerge.networks.architectures import create_network, rebuild_network
from geomerge.pruning.flops import Sizes, count
from geomerge.pruning.shrink import export_plain, removed_units, shrink
from geomerge.pruning.units import find_units


def named(name: str, shape: tuple[int, ...]) -> tuple[Network, torch.Tensor]:
    """A network with statistics that are not those of the start, and some inputs."""
    module = create_network(name, shape, 10, seed=0)
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            with torch.no_grad():
                layer.running_mean.normal_(0, 0.3, generator=generator)
                layer.running_var.uniform_(0.5, 2, generator=generator)
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.normal_(0, 0.3, generator=generator)
    return Network(module), torch.randn(4, *shape, generator=generator)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (1, 8, 8)),
        ("simple-mlp", (1, 8, 8)),
        ("cnn", (1, 12, 12)),
        ("simple-cnn", (1, 14, 14)),
        ("resnet18-cifar", (1, 8, 8)),
        ("resnet18", (3, 32, 32)),
        ("vit-cifar", (3, 8, 8)),
    ],
)
def test_a_third_of_all_units_less(name: str, shape: tuple[int, ...]) -> None:
    net, x = named(name, shape)
    units = find_units(net, x)
    masked = net.initial.clone()
    for one in units.values():
        masked[one.places(range(0, one.count, 3))] = 0
    removed = removed_units(net, masked, units)
    assert removed == {one.layer: list(range(0, one.count, 3)) for one in units.values()}
    expected = net.logits(masked, x)
    small = shrink(net, masked, removed, x)
    assert relative(small(x), expected) <= 1e-5
    assert relative(net.logits(net.initial, x), expected) > 1e-2
    assert count(small, shape).flops < count(net.module, shape).flops
    sizes = Sizes(net, units, x).without({layer: len(gone) for layer, gone in removed.items()})
    assert sizes == count(small, shape)
    # What is left is enough to make it again.
    again = rebuild_network(small.state_dict(), name, "test")
    assert torch.equal(again(x), small(x))
    assert not find_units(Network(small), x).keys() - units.keys()


def test_fifty_filters_of_vgg() -> None:
    net, x = named("vgg11-cifar", (3, 32, 32))
    filters = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:50].tolist()
    small = shrink(net, net.initial, {"features.0": filters}, x)
    masked = net.initial.clone()
    masked[find_units(net, x)["features.0"].places(filters)] = 0
    assert relative(small(x), net.logits(masked, x)) <= 1e-5
    weights = small.state_dict()
    assert weights["features.0.weight"].shape == (14, 3, 3, 3)
    assert weights["features.1.running_var"].shape == (14,)
    assert weights["features.4.weight"].shape == (128, 14, 3, 3)
    again = rebuild_network(weights, "vgg11-cifar", "test")
    assert torch.equal(again(x), small(x))
    with pytest.raises(CheckpointError, match="not those of a vgg11_bn"):
        rebuild_network(weights, "vgg11_bn", "test")


def test_tied_layers_lose_the_units_named_for_any_of_them() -> None:
    net, x = named("resnet18-cifar", (1, 8, 8))
    small = shrink(net, net.initial, {"layer1.0.conv2": [0, 3], "layer1.1.conv2": [3, 5]}, x)
    assert small.state_dict()["conv1.weight"].shape[0] == 61
    kept = [i for i in range(64) if i not in (0, 3, 5)]
    before = net.state_dict(net.initial)["layer1.1.conv2.weight"][kept]
    assert torch.equal(small.state_dict()["layer1.1.conv2.weight"], before)


def test_without_units_to_remove_it_is_a_copy() -> None:
    net, x = named("cnn", (1, 8, 8))
    small = shrink(net, net.initial, {}, x)
    assert torch.equal(small(x), net.logits(net.initial, x))
    small.state_dict()["0.weight"].zero_()
    assert torch.count_nonzero(net.initial[net.slices["0.weight"]])


def test_some_unit_must_stay() -> None:
    net, x = named("cnn", (1, 8, 8))
    with pytest.raises(OptionError, match="at least one unit of layer 0 to stay, got all 16"):
        shrink(net, net.initial, {"0": range(16)}, x)
    with pytest.raises(OptionError, match="units of '9' cannot be removed"):
        shrink(net, net.initial, {"9": [1]}, x)


class FixedWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1)
        self.second = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).reshape(-1, 16))


def test_code_that_expects_a_width_is_refused() -> None:
    net, x = Network(FixedWidth()), torch.randn(4, 1, 2, 2)
    masked = net.initial.clone()
    masked[find_units(net, x)["first"].places([0])] = 0
    assert removed_units(net, masked, find_units(net, x)) == {"first": [0]}
    with pytest.raises(OptionError, match="its own code expects the widths"):
        shrink(net, masked, {"first": [0]}, x)


def test_plain_pytorch_runs_the_exported_file(tmp_path: Path) -> None:
    net, x = named("cnn", (1, 8, 8))
    small = shrink(net, net.initial, {"0": [1, 2], "7": range(0, 100)}, x)
    path = tmp_path / "small.pt2"
    export_plain(small, x[:1], path)
    torch.save({"x": x, "y": small(x)}, tmp_path / "data.pt")
    code = (
        "import torch, sys\n"
        f"data = torch.load({str(tmp_path / 'data.pt')!r})\n"
        f"y = torch.export.load({str(path)!r}).module()(data['x'])\n"
        "torch.testing.assert_close(y, data['y'])\n"
        "assert 'geomerge' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert path.stat().st_size < 2e5  # the small network's weights alone


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)


def test_networks_that_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"torch\.export cannot export this network"):
        export_plain(Branching(), torch.randn(2, 2), tmp_path / "x.pt2")
    with pytest.raises(RunError, match=r"ending in \.pt2"):
        export_plain(nn.Linear(2, 2), torch.randn(2, 2), tmp_path / "x.pt")
    assert not [*tmp_path.iterdir()]
