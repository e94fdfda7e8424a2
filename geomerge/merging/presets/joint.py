"""Joint preset: from the mean of all networks, or the best of them, toward all functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from geomerge.expert import Expert
from geomerge.merging.few_texts import RATE as FEW_TEXTS_RATE
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.base import Preset, Stage, StageWalk, Start
from geomerge.merging.presets.registry import preset
from geomerge.merging.presets.sketches import mean_point
from geomerge.merging.walker import Walk, steps_taken
from geomerge.metrics import Metric, combine
from geomerge.walks.constraints import Constraints
from geomerge.walks.mixed_batches import KLToTeachers
from geomerge.walks.objectives import KLToTeacher
from geomerge.walks.state import WalkState
from geomerge.walks.walk import WalkControl, WalkPoint, walk_toward_function
from geomerge.weight_space import WeightSpace

__all__ = ["EUCLIDEAN_RATE", "REFRESH", "JointPreset", "few_are_enough"]

DAMPINGS = (1e-3,)
# Of classifiers whose walk sketches hold: steps are small where these say something. Chosen on
# selection splits of the BERTs' training files, with 256 texts of each. Language models keep the
# other: with this one two GPT-2 ended further from their experts on selection splits.
HELD_DAMPINGS = (1e-4,)
RATE = 1.0  # divided by the number of teachers
# The Euclidean metric is far weaker at the rate of the others: the best of 0.02 to 0.4 on networks
# of another seed than those of the benchmark.
EUCLIDEAN_RATE = 0.05
REFRESH = (0, 20, 60)  # turns before which the metric is measured
# Inputs of each expert in the metric of convolutions with BatchNorm: every position of a map is a
# row of its factors. With four times as many a ResNet20 had the same loss after 50 steps.
MAPS = 500
AHEAD = 0.05  # by the pick rule: accuracies near chance differ by less


@preset("joint")
class JointPreset(Preset):
    """Walk toward the functions of all networks, in the metric of all."""

    about = "from the mean of all networks toward all functions, on inputs of every task"
    preference: ClassVar[int | None] = 0

    def __init__(self, prepared: PreparedMerge) -> None:
        super().__init__(prepared)
        self.start, self.goal = None, self.space.experts[-1]
        generates = any(e.inputs is not None and e.inputs.at_once for e in self.space)
        usual = HELD_DAMPINGS if self.held_by_sketches and not generates else DAMPINGS
        self.stages = (Stage((), self.space.experts, self._candidates(usual)),)

    @classmethod
    def problem(cls, prepared: PreparedMerge) -> str | None:
        """Return the problem of networks without inputs."""
        blind = " and ".join(e.name for e in prepared.space if e.inputs is None)
        if not blind:
            return None
        return (
            f"the joint preset needs inputs of every network's task, and there are none for {blind}"
            "; name them with `inputs`"
        )

    def starts(self) -> Iterator[Start]:
        """Yield the mean of the weights, and what may be better.

        With a common base that is the mean in the metrics of the sketches. In a shared head it is a
        network that knows the others' tasks better than any mean, as networks of different shares
        of one task do.
        """
        if self.prepared.base is not None and self.kind.data_free:
            by_sketches = self.space.settle(mean_point(self.prepared))
            yield Start("the mean in the metrics of the sketches", by_sketches)
        yield from super().starts()
        if self.space.head == "shared":
            for expert in self.space:
                yield Start(f"network {expert.name}", self.space.settle(expert.weights), AHEAD)

    @property
    def walked_on(self) -> tuple[Expert, ...]:
        """Networks whose own inputs are used: others have inputs that stand in for theirs."""
        return tuple(expert for expert in self.space if expert.inputs is not None)

    def stage_walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> StageWalk:
        """Return the maker of the walks; each measures the metric of all along the way."""
        return partial(self._walk, start, _LastMetric())

    def _walk(
        self,
        start: Tensor,  # (n,)
        last: _LastMetric,
        damping: float,
        state: WalkState,
        rate: float = 1.0,
        constraints: Constraints | None = None,
    ) -> Walk:
        space, walker = self.space, self.walker
        experts = space.experts
        usual = EUCLIDEAN_RATE if self.kind.isotropic else self._rate / len(experts)
        walk = walker.settings(damping, rate * (self.options.walk.learning_rate or usual), REFRESH)
        learner = walker.learner(damping, state)
        measure = partial(last, self._metric_at(damping), damping)
        points = walk_toward_function(
            start, measure, self._directions(steps_taken(state)), walk,
            WalkControl(constraints, learner, space.settle, state),
        )  # fmt: skip
        return Walk(last.during(points), walk.steps * len(experts))

    @property
    def _rate(self) -> float:
        """Learning rate, times the number of teachers."""
        few = all(self.walker.replacement(expert) for expert in self.space)
        return FEW_TEXTS_RATE if few else RATE

    def _directions(self, taken: int) -> Sequence[KLToTeacher | KLToTeachers]:
        """Return the directions of a turn's steps, at their batch after some steps."""
        experts, walker = self.space.experts, self.walker
        if self.space.bn == "re-estimate":
            mixed = walker.mixed_direction(experts)
            mixed.skip(taken)
            return [mixed] * len(experts)
        directions = [
            walker.direction(e, others=[o for o in experts if o is not e]) for e in experts
        ]
        for k, direction in enumerate(directions):  # they take turns
            direction.skip((taken + len(experts) - 1 - k) // len(experts))
        return directions

    def _metric_at(self, damping: float) -> Callable[[Tensor], Metric]:
        """Return what measures the metric of all at a point, with sketches where inputs are few.

        The metric of a few inputs is zero in all other directions. A sketch of more inputs measures
        those too.
        """
        walker, experts = self.walker, self.space.experts
        if few_are_enough(self.space):
            seed = self.options.machine.seed
            known = [self.prepared.with_surrogates(e) for e in experts]
            experts = tuple(
                replace(e, inputs=None if e.inputs is None else e.inputs.sample(MAPS, seed))
                for e in known
            )
        if not self.held_by_sketches:
            return walker.metric_at(experts, damping)
        sketches = combine([self.prepared.sketch(e).metric for e in experts], mean=True)
        return walker.metric_at(experts, damping, sketches)

    def _measured(self, name: str) -> str:
        standing_in = self.prepared.surrogates.get(name)
        text = super()._measured(name)
        return text if standing_in is None else text.replace(f"{name}'s inputs", standing_in.name)

    @property
    def metric_inputs(self) -> int:
        """Largest number of inputs of each expert in a measurement of the walk's metric."""
        return min(self.kind.inputs, MAPS) if few_are_enough(self.space) else self.kind.inputs

    @property
    def held_by_sketches(self) -> bool:
        """Whether sketches of more inputs than there are hold the walk, next to these."""
        if self.prepared.base is None or not self.kind.data_free or self.kind.isotropic:
            return False
        return all(
            e.sketch is not None
            and e.inputs is not None
            and int(e.sketch.meta.get("inputs", 0)) > len(e.inputs)
            for e in self.space
        )

    def measurements(self, steps: int) -> int:
        """Return the number of measurements of the metric in a walk of so many steps."""
        turns = steps // len(self.space)
        return sum(turn < turns for turn in REFRESH)


class _LastMetric:
    """Last metric of a walk that diverged, for the next one from where that began."""

    def __init__(self) -> None:
        self._known: tuple[float, Tensor, Metric] | None = None

    def __call__(
        self,
        measure: Callable[[Tensor], Metric],
        damping: float,
        w: Tensor,  # (n,)
    ) -> Metric:
        """Return the metric at a point, measured unless it is the last one.

        Args:
            measure: Function that measures the metric at a point.
            damping: Damping that it is truncated for.
            w: The point.
        """
        if self._known is None or self._known[0] != damping or not torch.equal(self._known[1], w):
            self._known = None  # not to be held beside the next one's second moments
            self._known = damping, w, measure(w)
        return self._known[2]

    def during(self, points: Iterator[WalkPoint]) -> Iterator[WalkPoint]:
        """Pass on a walk, and forget the metric unless the walk diverges."""
        try:
            yield from points
        except GeneratorExit:  # a walk that is left
            self._known = None
            raise
        self._known = None


def few_are_enough(space: WeightSpace) -> bool:
    """Return whether the joint walk's metric is measured on :data:`MAPS` inputs of each expert."""
    return space.bn == "re-estimate" and space.network.convolves
