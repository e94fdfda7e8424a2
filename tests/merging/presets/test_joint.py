"""Joint walks of fine-tunes on few inputs: held by sketches, picked on inputs held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.expert import Expert
from geomerge.merging.presets import joint
from geomerge.merging.presets.joint import JointPreset
from geomerge.monitor.progress import Progress
from geomerge.testing import PresetLaws
from geomerge.training import train


class TestJoint(PresetLaws):
    name = "joint"

    def test_with_a_base_the_best_of_means_and_networks_is_the_start(self) -> None:
        experts = self.experts()
        base = replace(experts[0], weights=0.5 * experts[0].weights, task=None, inputs=None)
        merged = gm.merge(experts, base=base, preset=self.name, **self.options)
        starts = list(merged.preset.starts())
        assert len(starts) == 2 + (len(experts) if merged.space.head == "shared" else 0)
        scorer = merged.preset.prepared.scorer(list(merged.space))
        ranks = [merged.rule.rank(scorer(start.weights)) for start in starts]
        assert [start.margin > 0 for start in starts] == [False, False, *[True] * (len(starts) - 2)]
        best = starts[int(ranks[1] > ranks[0])]
        assert max(rank[2] for rank in ranks) <= max(ranks[:2])[2] + 0.05
        assert torch.equal(merged.stages[0].chosen.leg.base, best.weights)
        assert sum(f"the walk starts at {best.name}" in note for note in merged.notes) == 1


def test_a_network_far_ahead_of_the_mean_is_the_start() -> None:
    digits = gm.load_task("digits")
    experts = []
    for seed, epochs in ((0, 2), (1, 12)):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
        network = gm.Network(module)
        w = train(network, network.initial, [digits.train], epochs=epochs, seed=seed)
        experts.append(Expert.from_module(network.module_at(w), digits))
    merged = gm.merge(experts, preset="joint", align="none", steps=5)
    start = merged.stages[0].chosen.leg.base
    assert torch.equal(start, merged.space.experts[1].weights)
    assert any("the walk starts at network b, the best by" in note for note in merged.notes)
    usual = next(merged.preset.starts())
    assert torch.equal(usual.weights, merged.space.middle())


@pytest.mark.parametrize(("rate", "told"), [
    (256.0, "diverged at 1, 0.5, 0.25 x the learning rate and was walked at 0.125 x"),
    (1e4, "diverged at every learning rate down to 0.0625 x the usual one; the last walk is kept "
     "up to step 2"),
])  # fmt: skip
def test_a_walk_that_diverges_is_walked_slower_and_never_lost(
    rate: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = joint.JointPreset._metric_at

    def counted(preset: JointPreset, damping: float) -> Callable[[torch.Tensor], gm.Metric]:
        at = measure(preset, damping)
        return lambda w: measured.append(w) or at(w)  # type: ignore[func-returns-value]

    monkeypatch.setattr(joint.JointPreset, "_metric_at", counted)
    merged = gm.merge(TestJoint().experts(), preset="joint", learning_rate=rate, steps=8)
    (note,) = [note for note in merged.notes if "diverged" in note]
    assert told in note
    assert bool(merged.w.isfinite().all())
    assert len(measured) == 1  # all walks begin at one point


def test_a_resumed_merge_does_not_repeat_walks_that_diverged(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    began: list[str] = []

    def merge(stop: str) -> gm.MergeResult:
        def watch(progress: Progress) -> None:
            began.append(f"{progress.walk} {progress.step}")
            if progress.walk.startswith(stop):
                raise Stop

        return gm.merge(
            TestJoint().experts(), preset="joint", learning_rate=256.0, steps=8,
            folder=tmp_path / "path", work=tmp_path / "work", progress=watch,
        )  # fmt: skip

    with pytest.raises(Stop):
        merge("from")
    assert began.count("toward a+b, damping 0.001 1") == 4
    began.clear()
    (note,) = [note for note in merge("no walk").notes if "diverged" in note]
    assert "was walked at 0.125 x" in note
    assert not [name for name in began if name.startswith("toward")]


@pytest.fixture(scope="module")
def tuned() -> tuple[Expert, list[Expert]]:
    """A base, and two experts near it with sketches of more inputs than they bring."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    network = gm.Network(module)
    experts = []
    for k in range(2):
        w = network.initial + 0.3 * torch.randn(network.n)
        x = torch.randn(400, 16) * (1 + k) + k
        expert = Expert.from_module(network.module_at(w), inputs=x).with_sketch()
        experts.append(expert.with_inputs(x[:16]))
    return Expert.from_module(module, inputs=False), experts


def test_a_walk_on_few_inputs_does_not_end_below_its_start(
    tuned: tuple[Expert, list[Expert]],
) -> None:
    base, experts = tuned
    merged = gm.merge(experts, base=base, preset="joint", steps=30)
    preset = merged.preset
    assert isinstance(preset, JointPreset)
    assert preset.held_by_sketches
    seen = merged.picked.seen
    worst = {step: max(v for v in s.drift.values() if v is not None) for step, s in seen.items()}
    assert worst[merged.picked.step] == min(worst.values()) <= worst[0]
    for expert in merged.space:
        held, learned = preset.prepared.held_out(expert), preset.prepared.learned_on(expert)
        assert held.inputs is not None
        assert learned.inputs is not None
        assert (len(held.inputs), len(learned.inputs)) == (4, 12)
        assert len(preset.walker.targets(expert)) == 12


def test_sketches_of_no_more_inputs_do_not_hold_the_walk(
    tuned: tuple[Expert, list[Expert]],
) -> None:
    base, experts = tuned
    plain = [replace(expert, sketch=None) for expert in experts]
    found = gm.merge(plain, base=base, preset="joint", steps=2).preset
    assert isinstance(found, JointPreset)
    assert not found.held_by_sketches
    alone = gm.merge(experts, preset="joint", steps=2)  # no base: their units may differ
    assert isinstance(alone.preset, JointPreset)
    assert not alone.preset.held_by_sketches
    inputs = alone.space.experts[0]
    assert alone.preset.prepared.learned_on(inputs) is inputs
