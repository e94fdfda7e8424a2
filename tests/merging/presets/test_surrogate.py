from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.merging import merge
from geomerge.testing import PresetLaws
from geomerge.testing.method_laws import method_case


class TestSurrogate(PresetLaws):
    name = "surrogate"


def unknown(expert: Expert) -> Expert:
    """Return an expert of which nothing but the weights is known."""
    return replace(expert, task=None, inputs=None, sketch=None)


def test_it_is_taken_where_nothing_but_the_weights_of_a_network_is_known() -> None:
    a, b = method_case().space
    merged = merge([a, unknown(b)], steps=4, points=8)
    assert merged.preset.name == "surrogate"
    assert merged.rule.name == "equal-drift"
    assert any("stood in for the inputs of b" in note for note in merged.notes)
    assert merged.space["b"].inputs is None
    first = merge([unknown(a), b], steps=4, points=8)
    assert first.preset.start.name == "a"
    assert torch.equal(first.path.at(0), a.weights)
    assert torch.equal(first.path.at(1), b.weights)


def test_inputs_and_sketch_of_a_network_are_not_used_where_surrogates_are_asked_for() -> None:
    a, b = method_case().space
    options = {"preset": "surrogate", "steps": 4, "points": 8}
    with_data = merge([a, b], **options)
    without = merge([a, replace(b, inputs=None, sketch=None)], **options)
    assert torch.equal(with_data.w, without.w)
    assert any("its inputs" in note and "not used" in note for note in with_data.notes)


def test_a_pick_on_the_line_back_ends_a_straight_leg() -> None:
    a, b = method_case().space
    merged = merge([a, replace(b, inputs=None, sketch=None)], steps=6, points=8)
    step = merged.picked.step
    points = [merged.path.at(t) for t in merged.path.ts if t >= merged.t]
    gap = merged.w - b.weights
    across = [
        (p - b.weights) - gap * (torch.dot(p - b.weights, gap) / torch.dot(gap, gap))
        for p in points
    ]
    straight = max(float(v.norm()) for v in across) < 1e-4 * float(gap.norm())
    assert straight == (step > 6)


def test_two_networks_without_inputs_are_refused() -> None:
    a, b = method_case().space
    c = replace(b, task=None, inputs=None)
    with pytest.raises(OptionError, match="needs inputs of every network's task but one"):
        merge([a, unknown(b), c], head="shared")
