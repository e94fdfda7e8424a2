"""Merges without data: least predicted drift, by sketches alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.merging.cost import estimate_memory
from geomerge.merging.presets.sketches import mean_point
from geomerge.testing import PresetLaws


class TestSketches(PresetLaws):
    name = "sketches"


@pytest.fixture(scope="module")
def tuned() -> tuple[Expert, list[Expert]]:
    """A base without the experts' pooler and head, and three experts near it with sketches."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh())
    experts = []
    for k, classes in enumerate((2, 3, 4)):
        head = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, classes))
        module = nn.Sequential(trunk, head)
        moved = gm.Network(module)
        w = moved.initial + 0.05 * torch.randn(moved.n)
        x = torch.randn(60, 64) * (1 + k)
        expert = Expert.from_module(moved.module_at(w), inputs=x).with_sketch()
        experts.append(replace(expert, inputs=None))
    return Expert.from_module(nn.Sequential(trunk), inputs=False), experts


def test_it_is_the_default_where_there_are_sketches_and_no_inputs(
    tuned: tuple[Expert, list[Expert]],
) -> None:
    base, experts = tuned
    merged = gm.merge(experts, base=base, head="separate")
    assert (merged.preset.name, merged.rule.name) == ("sketches", "equal-drift")
    drift = merged.picked.score.drift
    middle = merged.preset.prepared.scorer(list(merged.space))(merged.space.middle()).drift
    assert max(v for v in drift.values() if v) < max(v for v in middle.values() if v)


def test_networks_in_files_merge_to_the_same_bits(
    tuned: tuple[Expert, list[Expert]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, experts = tuned
    plain = gm.merge(experts, base=base, head="separate")
    monkeypatch.setattr(paged, "LEAST", 1)
    held = gm.merge(experts, base=base, head="separate")
    n = plain.space.network.n
    for room, copies in ((True, 2), (False, 13)):  # on a disk, and where files take memory
        monkeypatch.setattr(paged, "has_room", lambda _, room=room: room)
        memory = estimate_memory(held.preset)
        assert memory["weights"] + memory["walk"] == 4 * copies * n
    assert torch.equal(held.w, plain.w)
    assert held.path.ts == plain.path.ts
    assert all(torch.equal(held.path.at(t), plain.path.at(t)) for t in (0, 0.3, 1))


def test_layers_that_the_base_has_not_are_each_networks_own(
    tuned: tuple[Expert, list[Expert]],
) -> None:
    base, experts = tuned
    merged = gm.merge(experts, base=base, head="separate")
    assert any("1.0 is not in the base" in note for note in merged.notes)
    for name, own in zip("abc", experts, strict=True):
        found = merged.module(name).state_dict()
        wanted = own.module().state_dict()
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
        x = torch.randn(5, 1, 8, 8)
        block = merged.expert_for(name)
        logits = block.network.logits(block.weights, x)
        assert torch.allclose(merged.module(name)(x), logits, atol=1e-6)
        placed = merged.space[name]  # before the merge, with the heads of all
        before = placed.network.logits(placed.weights, x)
        assert torch.allclose(before, own.network.logits(own.weights, x), atol=1e-6)


def test_no_walk_moves_what_lies_between_the_heads(tuned: tuple[Expert, list[Expert]]) -> None:
    base, experts = tuned
    walked = [expert.with_inputs(torch.randn(40, 64)) for expert in experts]
    merged = gm.merge(walked, base=base, head="separate", steps=3)
    assert merged.preset.name == "joint"
    still = merged.preset.prepared.still
    assert still is not None
    assert bool(still.any())
    assert not bool(merged.w[still].any())


def test_a_base_with_batchnorm_may_have_a_head_of_other_outputs() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU())
    base = nn.Sequential(trunk, nn.Linear(6, 5)).eval()
    tuned = [nn.Sequential(trunk, nn.Linear(6, classes)).eval() for classes in (2, 3)]
    experts = [Expert.from_module(m, inputs=torch.randn(40, 8)).with_sketch() for m in tuned]
    blind = [replace(expert, inputs=None) for expert in experts]
    merged = gm.merge(blind, base=base, head="separate")
    assert merged.preset.name == "sketches"


def test_a_base_of_another_make_is_refused(tuned: tuple[Expert, list[Expert]]) -> None:
    _, experts = tuned
    with pytest.raises(gm.errors.CheckpointError, match="is no ancestor"):
        gm.merge(experts, base=nn.Sequential(nn.Linear(3, 3)), head="separate")
    with pytest.raises(gm.errors.OptionError, match="`align` weights permutes units"):
        gm.merge(experts, base=tuned[0], head="separate", align="weights")


def drifts(merged: gm.MergeResult) -> dict[str, float]:
    """Predicted drifts of the mean that the merge walked to, without budgets."""
    prepared = merged.preset.prepared
    scored = prepared.scorer(list(merged.space))(mean_point(prepared)).drift
    return {name: value for name, value in scored.items() if value is not None}


def test_budgets_on_predicted_drift_are_kept_at_a_price(
    tuned: tuple[Expert, list[Expert]],
) -> None:
    base, experts = tuned
    free = drifts(gm.merge(experts, base=base, head="separate"))
    budget = {"a": 0.5 * free["a"]}
    merged = gm.merge(experts, base=base, head="separate", budget=budget)
    assert merged.picked.score.feasible
    assert merged.picked.score.drift["a"] == pytest.approx(budget["a"], rel=5e-3)
    assert merged.picked.steps[-1].multipliers["a"] > 0
    assert merged.picked.budgets is not None
    assert merged.picked.budgets.solved > 0
    with pytest.raises(gm.errors.OptionError, match="a sketch predicts the drift of a as a whole"):
        gm.merge(experts, base=base, head="separate", budget={"a/0": 1.0})


def test_the_worst_drift_can_be_least_and_networks_weigh(
    tuned: tuple[Expert, list[Expert]],
) -> None:
    base, experts = tuned
    even = drifts(gm.merge(experts, base=base, head="separate"))
    worst = gm.merge(experts, base=base, head="separate", least="worst").picked.score.drift
    assert max(v for v in worst.values() if v is not None) < max(even.values())
    heavy = drifts(gm.merge(experts, base=base, head="separate", weight={"b": 5.0}))
    assert heavy["b"] < even["b"]
    with pytest.raises(gm.errors.OptionError, match="`weight` names network 'z'"):
        gm.merge(experts, base=base, head="separate", weight={"z": 2.0})
    walked = [expert.with_inputs(torch.randn(40, 64)) for expert in experts]
    with pytest.raises(gm.errors.OptionError, match="`least` worst is for merges by sketches"):
        gm.merge(walked, base=base, head="separate", least="worst")


def test_check_predicts_what_the_metrics_gain_over_the_average(
    tuned: tuple[Expert, list[Expert]],
) -> None:
    base, experts = tuned
    found = gm.check(experts, base=base, head="separate")
    assert found.gain is not None
    merged = gm.merge(experts, base=base, head="separate")
    scorer = merged.preset.prepared.scorer(list(merged.space))
    average = scorer(merged.space.middle()).drift.values()
    mean = sum(v for v in average if v is not None) / 3
    assert found.gain["average"] == pytest.approx(mean, rel=1e-4)
    # What is gained is a little more in drift than in drift and damping together.
    gained = mean - sum(drifts(merged).values()) / 3
    assert 0 < found.gain["less"] <= gained < 1.3 * found.gain["less"]
    blind = [replace(expert, sketch=None).with_inputs(torch.randn(20, 64)) for expert in experts]
    assert gm.check(blind, base=base, head="separate", steps=1).gain is None
