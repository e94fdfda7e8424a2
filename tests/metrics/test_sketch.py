from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from geomerge import Network, load_checkpoint, load_task, make_sketch
from geomerge.data import Inputs, Normalisation
from geomerge.errors import CheckpointError
from geomerge.metrics import load_sketch, save_sketch
from geomerge.metrics.sketch import SIZE
from geomerge.networks.architectures import rebuild_network


@pytest.fixture
def network(digits: Path) -> Network:
    checkpoint = load_checkpoint(digits / "a.pt")
    return Network(rebuild_network(checkpoint.weights, "mlp", "a"))


def test_a_sketch_survives_the_disk(network: Network, tmp_path: Path) -> None:
    inputs = load_task("digits").train.inputs
    made = make_sketch(network, network.initial, inputs, "digits", count=300)
    save_sketch(tmp_path / "s.safetensors", made)
    read = load_sketch(tmp_path / "s.safetensors", network, network.initial)
    v = torch.randn(network.n)
    assert read.metric.inner(v, v) == pytest.approx(made.metric.inner(v, v), rel=1e-6)
    assert read.meta == made.meta
    again = make_sketch(network, network.initial, inputs, "digits", count=300)
    save_sketch(tmp_path / "t.safetensors", again)
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()


def test_a_sketch_of_other_weights_is_refused(network: Network, tmp_path: Path) -> None:
    inputs = load_task("digits").train.inputs
    made = make_sketch(network, network.initial, inputs, "digits", count=50)
    save_sketch(tmp_path / "s.safetensors", made)
    with pytest.raises(CheckpointError, match="other weights"):
        load_sketch(tmp_path / "s.safetensors", network, network.initial + 1)


def test_a_wide_layer_is_truncated_to_the_size_limit() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(400, 20), nn.ReLU(), nn.Linear(20, 10)))
    inputs = Inputs(torch.rand(600, 400), Normalisation((0.0,), (1.0,)))
    made = make_sketch(network, network.initial, inputs, "noise")
    size = sum(t.numel() for t in made.tensors().values())
    assert size <= SIZE * network.n
    assert min(made.meta["kept"].values()) < 1
    assert min(made.meta["kept"].values()) > 0.5
