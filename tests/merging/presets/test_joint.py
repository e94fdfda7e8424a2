from __future__ import annotations

from dataclasses import replace

import torch

from geomerge.merging import merge
from geomerge.testing import PresetLaws


class TestJoint(PresetLaws):
    name = "joint"

    def test_with_a_base_the_better_of_two_means_is_the_start(self) -> None:
        experts = self.experts()
        base = replace(experts[0], weights=0.5 * experts[0].weights, task=None, inputs=None)
        merged = merge(experts, base=base, preset=self.name, **self.options)
        starts = merged.preset.starts()
        assert len(starts) == 2
        scorer = merged.preset.prepared.scorer(list(merged.space))
        ranks = {name: merged.rule.rank(scorer(w)) for name, w in starts.items()}
        best = max(ranks, key=lambda name: ranks[name])
        assert torch.equal(merged.stages[0].chosen.leg.base, starts[best])
        assert sum(f"the walk starts at the {best}" in note for note in merged.notes) == 1
