"""Laws of presets: exact ends, no walk between twins, reasons for a refusal, a true description.

A test class for a preset inherits the laws and names the preset::

    class TestJoint(PresetLaws):
        name = "joint"
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from geomerge.errors import OptionError, Problems
from geomerge.expert import Expert
from geomerge.merging import MergeOptions, MergeResult, merge
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.presets.registry import PRESETS
from geomerge.testing.method_laws import method_case
from geomerge.walks.state import WalkState

__all__ = ["PresetLaws"]


class PresetLaws:
    """Laws that every preset of a merge obeys, as test methods for any test runner.

    Attributes:
        name: Name of the preset.
        options: Options of the merges by name; few steps are enough.
        drift: Largest distance that a merge of twins may go, as a share of the weights' norm.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {"steps": 4, "points": 8}
    drift: ClassVar[float] = 1e-3

    def experts(self, *, twin: bool = False) -> list[Expert]:
        """Return two experts with tasks and inputs that the preset can merge.

        Args:
            twin: Whether b has the weights of a.
        """
        return list(method_case(twin=twin).space)

    def merged(self, experts: list[Expert]) -> MergeResult:
        """Merge experts by the preset."""
        return merge(experts, preset=self.name, **self.options)

    def test_it_is_registered_with_what_it_does(self) -> None:
        """Its class has the registered name and a description."""
        cls = PRESETS[self.name]
        assert cls.name == self.name
        assert cls.about

    def test_the_path_starts_and_ends_at_the_networks(self) -> None:
        """Both ends and the crossover are the networks' weights bit for bit."""
        a, b = self.experts()
        merged = self.merged([a, b])
        assert torch.equal(merged.path.at(0), a.weights)
        assert torch.equal(merged.path.at(1), b.weights)
        assert torch.equal(merged.path.at(merged.t), merged.w)
        assert bool(merged.w.isfinite().all())

    def test_a_network_merged_with_itself_stays(self) -> None:
        """Between twins there is nowhere to go."""
        a, b = self.experts(twin=True)
        merged = self.merged([a, b])
        assert float((merged.w - a.weights).norm()) <= self.drift * float(a.weights.norm())

    def test_the_same_merge_gives_the_same_bits(self) -> None:
        """Draws depend on the seed alone, and the networks are not changed."""
        experts = self.experts()
        before = [expert.weights.clone() for expert in experts]
        first, second = self.merged(experts), self.merged(experts)
        assert torch.equal(first.w, second.w)
        assert first.path.ts == second.path.ts
        for expert, w in zip(experts, before, strict=True):
            assert torch.equal(expert.weights, w)

    def test_without_data_it_says_why_it_cannot_be_used(self) -> None:
        """The problem names the argument that would help, and the merge raises it."""
        blind = [replace(e, task=None, inputs=None, sketch=None) for e in self.experts()]
        problem = PRESETS[self.name].problem(self._prepared(blind))
        assert problem is not None
        assert "`inputs`" in problem
        assert self._refusal(blind) == problem

    def test_the_description_is_that_of_the_legs(self) -> None:
        """Each leg of the path is described once, by the network that it starts from."""
        merged = self.merged(self.experts())
        legs = merged.preset.describe()
        names = {expert.name for expert in merged.space}
        assert sorted(leg.start for leg in legs) == sorted(merged.path.lengths)
        for leg in legs:
            assert leg.end in names | {"the crossover"}
            assert set(leg.keeps) <= names
            assert leg.metric

    def test_a_walk_has_no_more_steps_than_it_says(self) -> None:
        """Every stage has a candidate, whose walk has no more points than declared."""
        preset = PRESETS[self.name](self._prepared(self.experts()))
        start = next(preset.starts()).weights
        for stage in preset.stages:
            walk = preset.stage_walk(stage, start)(stage.candidates[0], WalkState())
            points = list(walk.points)
            assert 0 < len(points) <= walk.steps
            assert preset.measurements(walk.steps) >= 0

    def _refusal(self, experts: list[Expert]) -> str:
        """Return the message with which a merge of experts is refused."""
        try:
            self.merged(experts)
        except OptionError as error:
            return str(error)
        raise AssertionError(f"{self.name} has a problem and merges all the same")

    def _prepared(self, experts: list[Expert]) -> PreparedMerge:
        options = MergeOptions(preset=self.name, **self.options)
        prepared = prepare(experts, options, Problems(strict=True))
        assert prepared is not None, "strict problems are raised"
        return prepared
