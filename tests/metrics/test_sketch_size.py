"""Sketches of a given size: bytes kept, functions of the metric nearly so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from geomerge import Network, load_sketch, make_sketch, save_sketch
from geomerge.data import as_they_are


class Tagger(nn.Module):
    """Words to classes: an embedding, a norm and two Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 16)
        self.norm = nn.LayerNorm(16)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(self.words(x)).mean(dim=1))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network(Tagger())


def test_a_stored_sketch_is_as_small_as_asked_and_measures_alike(
    network: Network, tmp_path: Path
) -> None:
    common = torch.rand(300).pow(6) + 1e-3  # a few words are frequent
    x = torch.multinomial(common, 400 * 6, replacement=True).view(400, 6)
    made = make_sketch(network, network.initial, as_they_are(x), "words")
    changes = torch.randn(8, network.n)
    whole = torch.tensor([made.metric.inner(v, v) for v in changes])
    errors = []
    for share in (0.25, 0.6):
        file = tmp_path / f"{share}.safetensors"
        save_sketch(file, made, share)
        assert file.stat().st_size < share * 4 * network.n + 6000  # the header and the record
        small = load_sketch(file, network, network.initial)
        found = torch.tensor([small.metric.inner(v, v) for v in changes])
        errors.append(float(((found - whole) / whole).abs().mean()))
        vectors = small.metric.layers[0].inputs.vectors
        eye = torch.eye(vectors.shape[1])
        assert torch.allclose(vectors.T @ vectors, eye, atol=1e-5)
        diagonal, known = small.metric.diagonal, made.metric.diagonal
        assert float(diagonal.sum()) == pytest.approx(float(known.sum()), rel=1e-2)
    assert errors[1] <= errors[0] < 0.25


def test_without_a_size_nothing_is_lost(network: Network, tmp_path: Path) -> None:
    x = torch.randint(300, (50, 6))
    made = make_sketch(network, network.initial, as_they_are(x), "words")
    save_sketch(tmp_path / "s.safetensors", made)
    again = load_sketch(tmp_path / "s.safetensors", network, network.initial)
    assert torch.equal(again.metric.diagonal, made.metric.diagonal)
