"""Merges on texts that are drawn, tokens by the sketch's frequencies, without the user's data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import model_folders
import pytest
import torch

import geomerge as gm
from geomerge.data import TextEncoder
from geomerge.expert import Expert
from geomerge.merging.presets.joint_surrogate import draw_texts


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Expert]]:
    base, sketched = model_folders.sketched_fine_tunes(tmp_path_factory.mktemp("drawn"))
    return base, [replace(expert, inputs=None, task=None) for expert in sketched]


def test_texts_are_framed_and_hold_likely_tokens_only() -> None:
    encoder = TextEncoder(model_folders.tokenizer(), 12)
    weights = torch.zeros(14)
    weights[[2, 5, 9]] = 1.0  # of which 2 is [CLS]
    drawn = draw_texts(encoder, weights, 50, seed=0)
    ids, mask = drawn["input_ids"], drawn["attention_mask"].bool()
    assert ids.shape[1] <= 12
    assert bool((ids[:, 0] == 2).all())
    for row, own in zip(ids, mask, strict=True):
        text = row[own]
        assert int(text[-1]) == 3
        assert set(text[1:-1].tolist()) <= {5, 9}
    assert len(mask.sum(dim=1).unique()) > 1
    assert torch.equal(ids, draw_texts(encoder, weights, 50, seed=0)["input_ids"])


def test_networks_are_merged_on_drawn_texts(tuned: tuple[Path, list[Expert]]) -> None:
    base, experts = tuned
    merged = gm.merge(
        experts, base=base, head="separate", preset="joint-surrogate", steps=4, points=8
    )
    assert merged.preset.name == "joint-surrogate"
    assert merged.rule.name == "equal-drift"
    assert merged.preset.walked_on == ()
    assert any("surrogate texts" in note for note in merged.notes)
    assert all(expert.inputs is None for expert in merged.space)
    assert bool(merged.w.isfinite().all())


def test_networks_that_take_no_tokens_are_refused() -> None:
    modules = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)) for _ in range(2)]
    x = torch.randn(30, 64)
    experts = [Expert.from_module(m, inputs=x).with_sketch() for m in modules]
    blind = [replace(expert, inputs=None) for expert in experts]
    with pytest.raises(gm.errors.OptionError, match="draws texts"):
        gm.merge(blind, preset="joint-surrogate")
