from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from geomerge import AssumptionWarning, Network
from geomerge.errors import CheckpointError, OptionError
from geomerge.networks.architectures import (
    NAMED,
    assumption,
    create_network,
    factory_name,
    identify,
    rebuild_network,
    recognise,
    same_architecture,
)
from geomerge.networks.architectures.activations import ACTIVATIONS

SHAPES = {
    "mlp": (1, 8, 8),
    "simple-mlp": (1, 8, 8),
    "lenet-300-100": (1, 8, 8),
    "cnn": (1, 28, 28),
    "simple-cnn": (1, 14, 14),
    "vit-cifar": (2, 8, 8),
    "vgg11-cifar": (3, 32, 32),
    "resnet18-gn-cifar": (1, 8, 8),
    "resnet18-cifar": (2, 8, 8),
    "resnet34": (1, 32, 32),
}
# Weights of these leave nothing open.
TELLING = ("simple-cnn", "vgg11-cifar", "resnet18", "vgg11", "resnet34")
OF_TORCHVISION = [name for name in NAMED if name.startswith(("vgg", "resne", "wide"))]
OF_TORCHVISION = [name for name in OF_TORCHVISION if name not in SHAPES or name == "resnet34"]


@pytest.mark.parametrize("name", SHAPES)
def test_named_networks_are_rebuilt_from_their_weights(name: str) -> None:
    shape = SHAPES[name]
    net = create_network(name, shape, 10, seed=1).eval().requires_grad_(False)
    x = torch.randn(2, *shape)
    again = rebuild_network(net.state_dict(), name, "test")
    assert torch.equal(again(x), net(x))
    if name == "resnet18-gn-cifar":
        return
    assumed = assumption(net.state_dict(), "test")
    assert (assumed is None) == (name in TELLING)
    told = nullcontext() if assumed is None else pytest.warns(AssumptionWarning, match="assumed")
    with told:
        again = rebuild_network(net.state_dict(), None, "test")
    assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("name", ["mlp", "lenet-300-100", "simple-mlp", "cnn"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_stated_and_identified(name: str, activation: str) -> None:
    shape, own = SHAPES[name], f"{name}:{activation}"
    net = create_network(own, shape, 10, seed=1).eval()
    x = torch.randn(2, *shape)
    again = rebuild_network(net.state_dict(), own, "test")
    assert torch.equal(again(x), net(x))
    usual = rebuild_network(net.state_dict(), name, "test")
    assert torch.equal(usual(x), net(x)) == (activation == "relu")
    network = Network(net)
    found = identify(network, network.initial, x)
    known = "mlp" if name == "lenet-300-100" else name  # weights do not tell these apart
    assert found == (known if activation == "relu" else f"{known}:{activation}")


def test_names_of_one_architecture_are_the_same() -> None:
    state = create_network("lenet-300-100", (1, 8, 8), 10, seed=0).state_dict()
    assert same_architecture("lenet-300-100", "mlp:relu", state)
    assert same_architecture("mlp:tanh", "lenet-300-100:tanh", state)
    assert not same_architecture("lenet-300-100", "mlp:tanh", state)
    assert not same_architecture("simple-mlp", "mlp", state)
    assert not same_architecture("cnn", "simple-cnn", state)


def test_a_network_of_its_own_is_not_identified() -> None:
    torch.manual_seed(0)
    sines = Network(Sines())
    assert recognise(sines.module.state_dict()) == "mlp"
    assert identify(sines, sines.initial, torch.randn(3, 4)) is None
    assert identify(sines, sines.initial) is None


class Sines(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 5), nn.Linear(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[1](torch.sin(self[0](x)))


def test_an_activation_that_cannot_be_stated_is_refused() -> None:
    weights = create_network("mlp", (4,), 3, seed=0).state_dict()
    with pytest.raises(OptionError, match="unknown activation 'tahn'; did you mean 'tanh'"):
        rebuild_network(weights, "mlp:tahn", "x.pt")
    with pytest.raises(OptionError, match="resnet18 has activations of its own"):
        create_network("resnet18:tanh", (3, 32, 32), 3, seed=0)


def test_factories_have_names_by_which_they_are_imported() -> None:
    assert factory_name(nn.Identity) == "torch.nn.modules.linear:Identity"
    assert factory_name(lambda: nn.Identity()) is None
    assert factory_name(partial(nn.Linear, 2, 2)) is None
    assert rebuild_network({}, "torch.nn.modules.linear:Identity", "x.pt") is not None


def test_every_name_is_tested() -> None:
    assert {*NAMED} == {*SHAPES, *OF_TORCHVISION}


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_networks_of_torchvision_are_recognised(name: str) -> None:
    with torch.device("meta"):
        net = get_model(name.removesuffix("-cifar"), num_classes=7)
        if name.endswith("-cifar"):
            net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    assert recognise(net.state_dict()) == name


def test_the_number_of_groups_is_never_guessed() -> None:
    weights = create_network("resnet18-gn-cifar", (3, 32, 32), 5, seed=0).state_dict()
    assert recognise(weights) is None
    with pytest.raises(CheckpointError, match="give `arch` resnet18-gn-cifar"):
        rebuild_network(weights, None, "x.pt")


def test_small_images_skip_the_first_pooling() -> None:
    net = create_network("resnet18-cifar", (3, 32, 32), 10, seed=0).eval()
    reference = get_model("resnet18", num_classes=10).eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    reference.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(x), reference(x))


def test_a_seed_gives_the_same_network_and_leaves_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = (create_network("mlp", (4,), 3, seed=2).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(torch.rand(1), expected)


class Named(nn.Module):
    def __init__(self, **sizes: tuple[int, int]) -> None:
        super().__init__()
        for name, (d_in, d_out) in sizes.items():
            self.add_module(name, nn.Linear(d_in, d_out))


def test_stacks_of_linear_layers_keep_their_own_names() -> None:
    user = nn.Sequential(nn.Flatten(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    net = rebuild_network(user.state_dict(), "mlp", "test")
    assert list(net.state_dict()) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    x = torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(net(x), user(x))


def test_layers_are_ordered_by_number_or_by_shape() -> None:
    numbered = Named(fc1=(4, 4), fc2=(4, 4), fc10=(4, 4))
    shuffled = dict(sorted(numbered.state_dict().items()))  # fc1, fc10, fc2
    net = rebuild_network(shuffled, "mlp", "test")
    x = torch.randn(2, 4)
    expected = numbered.fc10(numbered.fc2(numbered.fc1(x).relu()).relu())
    torch.testing.assert_close(net(x), expected)
    assert recognise(Named(zebra=(4, 5), ape=(5, 3)).state_dict()) == "mlp"


def test_an_unclear_order_is_refused() -> None:
    weights = Named(zebra=(4, 4), ape=(4, 4)).state_dict()
    assert recognise(weights) is None
    with pytest.raises(CheckpointError, match="give `arch` module:factory"):
        rebuild_network(weights, None, "x.pt")


def test_weights_that_do_not_fit_name_the_first_that_differs() -> None:
    weights = create_network("mlp", (4,), 3, seed=0).state_dict()
    with pytest.raises(CheckpointError, match="not those of a cnn"):
        rebuild_network(weights, "cnn", "x.pt")
    with pytest.raises(OptionError, match="did you mean 'cnn'"):
        rebuild_network(weights, "cn", "x.pt")


def test_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynet_for_test.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Linear(4, 2), nn.GELU(), nn.Linear(2, 2))\n"
        "def wrong(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    net = create_network("mynet_for_test:make", (4,), 2, seed=0)
    again = rebuild_network(net.state_dict(), "mynet_for_test:make", "x.pt")
    x = torch.randn(3, 4)
    torch.testing.assert_close(again(x), net(x))
    with pytest.raises(OptionError, match="returned an int"):
        create_network("mynet_for_test:wrong", (4,), 2, seed=0)
    with pytest.raises(OptionError, match="cannot import"):
        create_network("mynet_for_test:none", (4,), 2, seed=0)
    with pytest.raises(CheckpointError, match=r"expected '0\.weight' of shape"):
        rebuild_network({"0.weight": torch.zeros(3, 3)}, "mynet_for_test:make", "x.pt")


@pytest.mark.parametrize("name", ["vgg11-cifar", "vit-cifar", "factory"])
def test_a_head_may_be_larger_than_the_architecture_has_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "head_for_test.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.GELU(), "
        "nn.Linear(4, 10, bias=False))\n"
    )
    monkeypatch.chdir(tmp_path)
    if name == "factory":
        name = "head_for_test:make"
    weights = create_network(name, (3, 32, 32), 10, seed=0).state_dict()
    head = next(key for key in reversed(weights) if key.endswith("weight"))
    for key in (head, head.removesuffix("weight") + "bias"):
        if key in weights:
            weights[key] = torch.cat([weights[key], torch.zeros_like(weights[key][:3])])
    net = rebuild_network(weights, name, "x.pt")
    assert torch.equal(net.state_dict()[head], weights[head])
    x = torch.randn(2, 3, 32, 32)
    assert net(x).shape == (2, 13)
    with torch.no_grad():
        assert torch.count_nonzero(net(x)[:, 10:]) == 0


def test_other_layers_are_no_heads() -> None:
    weights = create_network("vit-cifar", (3, 32, 32), 10, seed=0).state_dict()
    weights["norm.weight"] = torch.ones(129)
    with pytest.raises(CheckpointError, match=r"expected 'norm\.weight' of shape \(128,\), got"):
        rebuild_network(weights, "vit-cifar", "x.pt")


NARROW = (
    "from torch import nn\n"
    "def make(): return nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), "
    "nn.GELU(), nn.Conv2d(6, 6, 1, groups=6), nn.Conv2d(6, 4, 1, groups=2), nn.Flatten(), "
    "nn.Linear(16, 3))\n"
)


def narrow_weights(width: int, groups: int = 2, classes: int = 3) -> dict[str, torch.Tensor]:
    net = nn.Sequential(
        nn.Conv2d(2, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Conv2d(width, width, 1, groups=width),
        nn.Conv2d(width, 4, 1, groups=groups),
        nn.Flatten(),
        nn.Linear(16, classes),
    )
    return net.state_dict()


def test_layers_may_be_narrower_than_the_architecture_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "narrow_for_test.py").write_text(NARROW.replace(", groups=2", ""))
    monkeypatch.chdir(tmp_path)
    for classes in (3, 5):  # with another head too
        weights = narrow_weights(4, groups=1, classes=classes)
        net = rebuild_network(weights, "narrow_for_test:make", "x.pt")
        assert net(torch.randn(2, 2, 4, 4)).shape == (2, classes)
        assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
        sizes = (net[0].out_channels, net[1].num_features, net[3].groups, net[4].in_channels)
        assert sizes == (4, 4, 4, 4)


def test_layers_that_are_wider_or_in_groups_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wide_for_test.py").write_text(NARROW)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected '0\.weight' of shape \(6, 2, 3, 3\), got"):
        rebuild_network(narrow_weights(8), "wide_for_test:make", "x.pt")
    with pytest.raises(CheckpointError, match=r"expected '4\.weight' of shape \(4, 3, 1, 1\), got"):
        rebuild_network(narrow_weights(4), "wide_for_test:make", "x.pt")
    weights = narrow_weights(6)
    weights["1.running_mean"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"expected '1\.running_mean' of shape \(6,\), got"):
        rebuild_network(weights, "wide_for_test:make", "x.pt")


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("simple-cnn", ("features.0", "features.2")),
        ("vgg16_bn", ("features.40", "features.41", "classifier.0")),
        ("resnet50", ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2")),
        ("vit-cifar", ("layers.2.linear1", "layers.2.linear2")),
    ],
)
def test_named_networks_may_be_narrower(name: str, layers: tuple[str, ...]) -> None:
    shape = (3, 32, 32)
    weights = create_network(name, shape, 10, seed=0).state_dict()
    *made, read = layers
    for layer in made:  # without its last unit
        for key in weights:
            if key.rpartition(".")[0] == layer and weights[key].dim():
                weights[key] = weights[key][:-1]
    width = weights[f"{read}.weight"].shape[1]
    each = width // (len(weights[f"{made[0]}.weight"]) + 1)
    weights[f"{read}.weight"] = weights[f"{read}.weight"][:, : width - each]
    net = rebuild_network(weights, name, "x.pt")
    assert net(torch.randn(1, *shape)).shape == (1, 10)
    assert recognise(weights) is None  # only their name tells


def test_networks_that_do_not_fit_the_task() -> None:
    with pytest.raises(OptionError, match="square images"):
        create_network("cnn", (7,), 3, seed=0)
    with pytest.raises(OptionError, match="vgg11-cifar takes"):
        create_network("vgg11-cifar", (1, 28, 28), 10, seed=0)
    with pytest.raises(OptionError, match="vit-cifar takes square images whose side"):
        create_network("vit-cifar", (3, 30, 30), 10, seed=0)
