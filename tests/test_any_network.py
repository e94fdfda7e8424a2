"""Every kind of network goes through: rebuilt, measured, kept in a sketch, walked."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from geomerge import Network, make_sketch
from geomerge.data import Inputs, Normalisation, as_they_are
from geomerge.errors import CheckpointError
from geomerge.metrics import load_sketch, save_sketch
from geomerge.metrics.sketch import restore_sketch
from geomerge.networks.architectures import create_network, rebuild_network, recognise
from geomerge.networks.batches import pass_to
from geomerge.networks.outputs import logits_in
from geomerge.walks.objectives import KLToTeacher, log_probabilities
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8))),
        nn.SiLU(inplace=True),
        nn.BatchNorm2d(8, affine=False),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
    )


class Words(nn.Module):
    """Embeddings with positions, self-attention, and cross-attention of one learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3000, 8, padding_idx=0)
        self.places = nn.Parameter(0.1 * torch.randn(6, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(self.table(x.long()) + self.places)
        y, _ = self.cross(self.query.expand(len(x), -1, -1), y, y)
        return self.head(y.squeeze(1))


class Pairs(nn.Module):
    """Images and numbers, in a tuple whose first entry is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Conv2d(3, 8, 3)
        self.numbers = nn.Linear(2, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.images(x).mean((2, 3)).relu() + self.numbers(t)
        return self.head(hidden), hidden


class Masked(nn.Module):
    """Tokens and a mask by name, in a mapping with logits; positions that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3000, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)
        self.register_buffer("places", torch.linspace(-1, 1, 6), persistent=False)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.table(tokens) + self.places[:, None]
        y = self.layer(y, src_key_padding_mask=~mask)
        return {"hidden": y, "logits": self.head(y[:, 0])}


def named(name: str) -> Callable[[], nn.Module]:
    return lambda: create_network(name, (3, SIDES.get(name, 8), SIDES.get(name, 8)), 4, seed=0)


SIDES = {"resnet18": 32, "vgg11-cifar": 32, "simple-cnn": 14}
NAMES = ("simple-mlp", "simple-cnn", "vgg11-cifar", "resnet18-gn-cifar", "vit-cifar")
FACTORIES = {"norms": normed, "words": Words, "pairs": Pairs, "masked": Masked}
NETWORKS = {
    **FACTORIES,
    "resnet18": lambda: get_model("resnet18", num_classes=4),
    **{name: named(name) for name in NAMES},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the decomposition of large factors: their leading directions will do here."""
    monkeypatch.setattr("geomerge.metrics.kronecker.factor.WIDEST", 256)
    monkeypatch.setattr("geomerge.metrics.kronecker.factor._WIDE_RANK", 32)


def inputs_of(name: str, count: int = 4) -> Inputs:
    torch.manual_seed(2)
    tokens = torch.randint(0, 3000, (count, 6))
    if name == "words":
        return as_they_are(tokens)
    if name == "masked":
        return as_they_are({"tokens": tokens, "mask": torch.arange(6) < 1 + tokens[:, :1] % 6})
    if name == "pairs":
        return as_they_are((torch.randn(count, 3, 8, 8), torch.randn(count, 2)))
    side = SIDES.get(name, 8)
    return Inputs(torch.randn(count, 3, side, side), Normalisation((0.0,), (1.0,)))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_measured_kept_and_walked(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = Network(NETWORKS[name]())
    w, inputs = network.initial, inputs_of(name)
    made = make_sketch(network, w, inputs, name)
    metric = made.metric
    for layer in metric.layers:
        for factor in (layer.inputs, layer.outputs):
            assert torch.isfinite(factor.vectors).all()
            assert min(float(factor.values.min()), factor.tail) >= 0
    assert torch.isfinite(metric.diagonal).all()
    assert metric.diagonal.numel() == 0 or float(metric.diagonal.min()) >= 0

    save_sketch(tmp_path / "s.safetensors", made)
    read = load_sketch(tmp_path / "s.safetensors", network, w)
    v = torch.randn(network.n)
    assert read.metric.inner(v, v) == pytest.approx(metric.inner(v, v), rel=1e-5)
    coordinates = read.metric.coordinates(v)
    torch.testing.assert_close(coordinates.compose(coordinates.parts), v, rtol=1e-4, atol=1e-4)

    teacher = log_probabilities(network, w, inputs).roll(1, dims=0)
    direction = KLToTeacher(network, teacher, inputs, batch=4, seed=0)
    walk = FunctionWalkOptions(damping=0.1, steps=2, learning_rate=0.05)
    points = list(walk_toward_function(w, lambda w: read.metric, [direction], walk))
    assert all(torch.isfinite(point.weights).all() for point in points)
    assert points[-1].norm > 0


@pytest.mark.parametrize("name", FACTORIES)
def test_others_come_from_a_factory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = FACTORIES[name]().eval().requires_grad_(False)
    with pytest.raises(CheckpointError, match="give `arch` module:factory"):
        rebuild_network(net.state_dict(), None, "x.pt")
    module = types.ModuleType("any_for_test")
    module.make = FACTORIES[name]
    monkeypatch.setitem(sys.modules, "any_for_test", module)
    again = rebuild_network(net.state_dict(), "any_for_test:make", "x.pt")
    x = inputs_of(name).batch(slice(0, 2))
    assert torch.equal(logits_in(pass_to(again, x)), logits_in(pass_to(net, x)))


def test_networks_of_avalanche_are_rebuilt_without_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what avalanche imports
        from avalanche.models import SimpleCNN, SimpleMLP
    x = torch.randn(2, 3, 16, 16)
    for name, net in (
        ("simple-mlp", SimpleMLP(num_classes=7, input_size=768)),
        ("simple-mlp", SimpleMLP(input_size=768, hidden_size=20, hidden_layers=4)),
        ("simple-cnn", SimpleCNN(num_classes=3)),
    ):
        net.eval().requires_grad_(False)
        weights = net.state_dict()
        assert recognise(weights) == name
        assert torch.equal(rebuild_network(weights, name, "x.pt")(x), net(x))


def test_sketches_of_the_first_version_do_not_say_where_layers_lie() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.BatchNorm1d(3)))
    made = make_sketch(network, network.initial, inputs_of("old"), "old")
    tensors, meta = made.tensors(), {k: v for k, v in made.meta.items() if k != "places"}
    read = restore_sketch(tensors, meta, network, network.initial, "old")
    v = torch.randn(network.n)
    assert read.metric.inner(v, v) == pytest.approx(made.metric.inner(v, v), rel=1e-5)
    wrong = {**made.meta, "places": {"1": [[0, 576], [577, 580]]}}
    with pytest.raises(CheckpointError, match="does not fit the network"):
        restore_sketch(tensors, wrong, network, network.initial, "old")
