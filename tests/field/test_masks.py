"""Causal masks with infinity among the buffers: read, merged and written as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomerge as gm
from geomerge.errors import CheckpointError


class Reader(nn.Module):
    """One head of causal attention over tokens, with its mask in the state dict as in GPT-2."""

    def __init__(self, low: float = float("-inf")) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)
        self.register_buffer("bias", torch.full((5, 5), low).triu(1))
        self.register_buffer("masked_bias", torch.tensor(low))

    def forward(self, x: Tensor) -> Tensor:
        e = self.embed(x)
        seen = (e @ e.mT + self.bias).softmax(-1)
        return self.out((seen @ e)[:, -1])


def expert(seed: int, low: float = float("-inf")) -> gm.Expert:
    torch.manual_seed(seed)
    x = torch.randint(0, 7, (40, 5))
    return gm.Expert.from_module(Reader(low), gm.Task.from_tensors(x, x[:, 0] % 3))


def test_masks_with_infinity_pass(tmp_path: Path) -> None:
    experts = [expert(0), expert(1)]
    for name, one in zip("ab", experts, strict=True):
        one.save(tmp_path / f"{name}.safetensors")
        torch.save(one.module().state_dict(), tmp_path / f"{name}.pt")
        again = gm.Expert.load(tmp_path / f"{name}.pt", arch=Reader)
        assert torch.equal(again.weights, one.weights)
    merged = gm.merge(experts, steps=4, points=8, damping=1e-2)
    assert torch.equal(merged.module().bias, Reader().bias)
    merged.save(tmp_path / "run")
    stored = gm.load_checkpoint(tmp_path / "run" / "merged.safetensors").weights
    assert torch.equal(stored["bias"], Reader().bias)
    assert merged.path.at(0.5).isfinite().all()


def test_two_masks_are_named() -> None:
    with pytest.raises(CheckpointError, match="is a mask with infinity in one of a and b"):
        gm.merge([expert(0), expert(1, -1e9)])


@pytest.mark.parametrize("value", [[1.0, float("inf")], [0.0, float("nan")], [float("nan")] * 2])
def test_weights_that_are_not_finite_are_refused(value: Any, tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor(value)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="are not all finite"):
        gm.load_checkpoint(tmp_path / "a.pt")
