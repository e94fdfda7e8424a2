from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.errors import OptionError

X = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FAST = {"steps": 2, "points": 8, "damping": 1e-3}


def convolutions(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 4),
    )  # fmt: skip


def permuted(module: nn.Module) -> nn.Module:
    """Return the same function with the channels of the first convolution in another order."""
    other, order = convolutions(0), torch.tensor([3, 1, 5, 0, 2, 4])
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["0.weight"], state["0.bias"] = state["0.weight"][order], state["0.bias"][order]
    state["2.weight"] = state["2.weight"][:, order]
    other.load_state_dict(state)
    return other


def experts(*modules: nn.Module) -> list[gm.Expert]:
    return [gm.Expert.from_module(module, inputs=X) for module in modules]


def test_convolutional_networks_are_aligned_where_their_mean_is_better() -> None:
    a = convolutions(1)
    merged = gm.merge(experts(a, permuted(a)), **FAST)
    assert merged.preset.name == "joint"
    assert any("`align` weights was chosen" in note for note in merged.notes)
    torch.testing.assert_close(merged.path.at(1), merged.path.at(0))
    found = gm.check(experts(a, permuted(a)), **FAST)
    assert any("`align` weights was chosen" in note for note in found.notes)


def test_networks_near_each_other_stay_as_they_came() -> None:
    a, b = convolutions(1), convolutions(1)
    with torch.no_grad():
        for p in b.parameters():
            p += 0.01 * torch.randn_like(p)
    merged = gm.merge(experts(a, b), **FAST)
    assert not merged.preset.prepared.alignments
    assert any("`align` none was chosen" in note for note in merged.notes)


def test_alignment_can_be_left_out_and_is_not_tried_without_convolutions() -> None:
    a = convolutions(1)
    assert not gm.merge(experts(a, permuted(a)), align="none", **FAST).preset.prepared.alignments
    torch.manual_seed(0)
    stacks = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2)
    ]
    merged = gm.merge(experts(*stacks), **FAST)
    assert not merged.preset.prepared.alignments
    assert not any("`align`" in note for note in merged.notes)


def test_a_network_none_of_whose_units_can_be_matched_is_refused_with_the_layer() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x = torch.randn(40, 2, 8, 8)
    pair = [gm.Expert.from_module(module, inputs=x) for _ in range(2)]
    with pytest.raises(OptionError, match=r"no units can be matched \(.*0: .*groups"):
        gm.merge(pair, align="activations", **FAST)


def test_without_inputs_nothing_is_tried() -> None:
    a, b = (e.with_sketch(inputs=50) for e in experts(convolutions(1), convolutions(2)))
    merged = gm.merge([replace(e, inputs=None) for e in (a, b)], **FAST)
    assert merged.preset.name == "sketches"
    assert not merged.preset.prepared.alignments
    assert any("no inputs to test whether it helps" in note for note in merged.notes)


def test_large_inputs_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomerge.merging.auto_align.NUMBERS", 63)
    a = convolutions(1)
    merged = gm.merge(experts(a, permuted(a)), **FAST)
    assert not merged.preset.prepared.alignments
    assert any("too large to try" in note for note in merged.notes)
