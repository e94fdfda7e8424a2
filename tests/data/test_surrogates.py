from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import geomerge as gm
from geomerge.data import as_they_are
from geomerge.data.surrogates import noise_images, surrogate_inputs
from geomerge.errors import TaskError


class Tagger(nn.Module):
    """Classifier of tokens with segments and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.segments = nn.Embedding(50, 6), nn.Embedding(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        x = (self.words(ids) + self.segments(segments)) * mask.unsqueeze(-1)
        return self.head(x.mean(dim=1))


def drawn(module: nn.Module, like: object, **given: int) -> gm.data.Inputs:
    network = gm.Network(module)
    return surrogate_inputs(network, network.initial, as_they_are(like), **given)


def test_noise_has_several_scales_and_contrasts() -> None:
    x = noise_images(500, 3, 28, 28, torch.Generator().manual_seed(0))
    deviation = x.std(dim=(1, 2, 3))
    assert float(deviation.min()) < 0.3
    assert 1.7 < float(deviation.max()) <= 2.0
    neighbours = (x[..., 1:] * x[..., :-1]).mean(dim=(1, 2, 3)) / deviation.square()
    fine, coarse = neighbours[0::5].mean(), neighbours[4::5].mean()
    assert abs(float(fine)) < 0.1 < 0.8 < float(coarse)
    channels = (x[:, 0] * x[:, 1]).mean(dim=(1, 2)) / deviation.square()
    assert float(channels.std()) > 0.1


def test_the_same_seed_draws_the_same_inputs() -> None:
    module, like = nn.Linear(5, 2), torch.randn(40, 5)
    first, again = (drawn(module, like, count=30, seed=3) for _ in range(2))
    assert torch.equal(first.raw, again.raw)
    assert not torch.equal(first.raw, drawn(module, like, count=30, seed=4).raw)


def test_vectors_have_the_moments_of_the_inputs_that_are_given() -> None:
    like = torch.randn(400, 3) * torch.tensor([0.01, 1.0, 100.0]) + torch.tensor([0.0, 5.0, 0.0])
    found = drawn(nn.Linear(3, 2), like, count=4000)
    assert found.name == "surrogate vectors"
    torch.testing.assert_close(found.raw.mean(dim=0), like.mean(dim=0), rtol=0.1, atol=5.0)
    torch.testing.assert_close(found.raw.std(dim=0), like.std(dim=0), rtol=0.1, atol=0.0)


def test_tokens_come_from_the_vocabulary_of_their_embedding() -> None:
    ids = torch.randint(3, 9, (30, 7))
    ids[:, 0] = 1  # a start token
    like = {"ids": ids, "segments": torch.zeros(30, 7, dtype=torch.long), "mask": torch.ones(30, 7)}
    like["mask"] = like["mask"].long()
    found = drawn(Tagger(), like, count=200)
    assert found.name == "surrogate tokens"
    assert found.raw["ids"].unique().tolist() == list(range(50))
    assert bool((found.raw["ids"][:, 0] == 1).all())
    assert not found.raw["segments"].any()
    assert bool(found.raw["mask"].all())


def test_inputs_of_another_form_are_refused_with_what_to_give() -> None:
    with pytest.raises(TaskError, match=r"surrogate inputs have the form of .*or a sketch"):
        drawn(nn.Embedding(10, 2), torch.randn(20, 1, 8, 8))
