"""Surrogate preset: from a network of which only the weights are known, and the line back to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from geomerge.data.surrogates import surrogate_inputs
from geomerge.expert import Expert
from geomerge.merging.measuring import inputs_of
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.base import LegDescription, Stage, StageWalk
from geomerge.merging.presets.registry import preset
from geomerge.merging.presets.sketch import SketchPreset
from geomerge.merging.walker import Walk
from geomerge.metrics import Metric
from geomerge.walks.constraints import Constraints
from geomerge.walks.state import WalkState
from geomerge.walks.walk import FunctionWalkOptions, WalkPoint, walk_straight

__all__ = ["SurrogatePreset"]

# The metric is less accurate than that of a true sketch: more damping limits its errors.
DAMPINGS = (3e-5, 1e-4, 3e-4)
LINE_STEPS = 40  # steps of the line from the walk's end back to its start


@preset("surrogate")
class SurrogatePreset(SketchPreset):
    """Walk in a metric measured on surrogate inputs, then straight back to where it started.

    The walk's end has the other functions, its start has its own; on the line between them both
    fall more slowly than along the walk.
    """

    about = "from one network, kept on surrogate inputs, toward the others' functions, and back"
    preference = 4

    dampings = DAMPINGS

    def __init__(self, prepared: PreparedMerge) -> None:
        super().__init__(_with_surrogates(prepared))
        self._metric: Metric | None = None
        self._straight = False

    @classmethod
    def problem(cls, prepared: PreparedMerge) -> str | None:
        """Return that inputs are missing of more networks than of one end of the path."""
        blind = [expert.name for expert in prepared.space if expert.inputs is None]
        if len(blind) == len(prepared.space):
            if prepared.base is not None:
                return (
                    "no inputs to walk on, and not a sketch of every network; make one of each "
                    "with geomerge sketch, or name the task of one network with `inputs`"
                )
            return "no inputs to walk on; name the task of one network with `inputs`, such as mnist"
        if len(blind) > 1:
            return (
                "the surrogate preset needs inputs of every network's task but one, and there are "
                f"none for {' and '.join(blind)}; name them with `inputs`"
            )
        if _unknown(prepared) not in prepared.space.ends:
            return (
                f"expected inputs of every network between the first and the last, got none for "
                f"{_unknown(prepared).name}; put its file first or last, or name its task with "
                "`inputs`"
            )
        return None

    @classmethod
    def roles(cls, prepared: PreparedMerge) -> tuple[Expert, list[Expert]] | None:
        """Return the network without inputs and the others, from its end of the path on."""
        own = _unknown(prepared)
        others = [expert for expert in prepared.space if expert is not own]
        return own, others if own is prepared.space.experts[0] else others[::-1]

    def conflict(self) -> str | None:
        """Return None: every metric can be measured on the surrogate inputs."""
        return None

    @property
    def predicts_drifts(self) -> bool:
        """Whether drifts are measured where the data measures none: on the surrogate inputs."""
        return True

    def stage_walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> StageWalk:
        """Return the maker of the walks, each followed by the line back to the start."""
        self._metric = self._kept_metric(stage, start)
        self._diagonal = self._metric.diagonal_only
        return partial(self._there_and_back, stage, start, self._metric)

    def _there_and_back(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
        metric: Metric,
        damping: float,
        state: WalkState,
        rate: float = 1.0,
        constraints: Constraints | None = None,
    ) -> Walk:
        there = self._walk(stage, start, metric, damping, state, rate, constraints)

        def points() -> Iterator[WalkPoint]:
            yield from there.points
            end = state.tensors["w"]
            yield from walk_straight(end, start, metric, LINE_STEPS, state.part("line"))

        return Walk(points(), there.steps + LINE_STEPS)

    def shortcut(
        self,
        start: Tensor,  # (n,)
        step: int,
        crossover: Tensor,  # (n,)
        state: WalkState,
    ) -> Walk | None:
        """Return the line from the start to a pick on it; None for a pick on the walk's way out."""
        assert self._metric is not None, "a stage was walked"
        self._straight = step > (self.options.walk.steps or FunctionWalkOptions.steps)
        if not self._straight:
            return None
        line = walk_straight(start, crossover, self._metric, LINE_STEPS, state)
        return Walk(line, LINE_STEPS)

    def _leg(self, expert: Expert) -> LegDescription:
        leg = super()._leg(expert)
        if expert is not self.start:
            return leg
        text = leg.metric
        if not self.kind.isotropic:
            text += f", {self.prepared.surrogates[expert.name].name} for {expert.name}"
        if self._straight:
            text = f"straight line from the end of a walk ({text})"
        return replace(leg, metric=text)


def _unknown(prepared: PreparedMerge) -> Expert:
    """Return the network that gets surrogate inputs: one without any, else the last."""
    blind = [expert for expert in prepared.space if expert.inputs is None]
    return blind[0] if blind else prepared.space.experts[-1]


def _with_surrogates(prepared: PreparedMerge) -> PreparedMerge:
    """Return the merge with surrogate inputs of the network that is to be kept.

    Raises:
        TaskError: If that network cannot take inputs of the others' form.
    """
    space, own = prepared.space, _unknown(prepared)
    if own.name in prepared.surrogates:
        return prepared
    other = next(expert for expert in space if expert is not own)
    seed = prepared.options.machine.seed
    drawn = surrogate_inputs(own.network, own.weights, inputs_of(other), seed=seed)
    given = [
        *(["its inputs"] if own.inputs is not None else []),
        *(["its sketch"] if own.sketch is not None else []),
    ]
    note = f"{len(drawn)} {drawn.name} stood in for the inputs of {own.name}'s task"
    if given:
        note += f"; {' and '.join(given)} were not used"
    bare = replace(own, inputs=None, sketch=None)
    return replace(
        prepared,
        space=replace(space.with_expert(bare), bn=space.bn and "keep"),
        notes=[*prepared.notes, note],
        surrogates={own.name: drawn},
        _sketches={},
    )
