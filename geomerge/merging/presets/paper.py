"""Paper preset: from one network toward the weights of the other, eq. (7) of arXiv 2012.09605."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from geomerge.expert import Expert
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.base import LegDescription, Preset, Stage, StageWalk
from geomerge.merging.presets.registry import preset
from geomerge.merging.walker import DAMPING, RATE, STRAIGHT_STEPS, Walk
from geomerge.metrics import EuclideanMetric
from geomerge.walks.constraints import Constraints
from geomerge.walks.state import WalkState
from geomerge.walks.walk import FunctionWalkOptions, WeightWalkOptions, walk_straight
from geomerge.weight_space import WeightSpace

__all__ = ["PaperPreset"]

DAMPINGS = (3e-4, 1e-3, 3e-3)
BACK_STEPS = 200  # steps that reduce the drift before the walk goes straight


@preset("paper")
class PaperPreset(Preset):
    """Walk from a network with inputs to the weights of the other, keeping its function."""

    about = "from one network, kept on its inputs, to the weights of the other"
    retries = 0  # the step's length is bounded, there is no rate to halve
    walks_on = True

    def __init__(self, prepared: PreparedMerge) -> None:
        super().__init__(prepared)
        self.start, self.goal = _roles(prepared.space)
        self.stages = (Stage((self.start,), (), self._candidates(DAMPINGS), self.goal),)

    @classmethod
    def problem(cls, prepared: PreparedMerge) -> str | None:
        """Return the problem: too many networks, damping to learn, or no inputs."""
        if len(prepared.space) > 2:
            return (
                f"the paper preset walks between two networks, got {len(prepared.space)}; leave "
                "`preset` out, and name inputs of every network's task but one with `inputs`"
            )
        if prepared.options.walk.learn is not None:
            return (
                "`learn` damping needs a walk toward functions, and the paper preset walks "
                "toward weights; leave one of the two out"
            )
        if all(expert.inputs is None for expert in prepared.space):
            return "no inputs to walk on; name the task of one network with `inputs`, such as mnist"
        return None

    def conflict(self) -> str | None:
        """Return that legs, which this path does not have, were chosen."""
        if self.options.walk.legs is None:
            return None
        return "`legs` is for closing a path, and the paper preset walks to its end; leave it out"

    @property
    def walked_on(self) -> tuple[Expert, ...]:
        """The network whose function is kept."""
        return self.stages[0].kept

    @property
    def open_ends(self) -> tuple[Expert, ...]:
        """No end: the walk goes from one to the other."""
        return ()

    def stage_walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> StageWalk:
        """Return the maker of the walks; each measures the metric along the way."""
        return partial(self._walk, stage.kept[0])

    def _walk(
        self,
        expert: Expert,
        damping: float,
        state: WalkState,
        rate: float = 1.0,
        constraints: Constraints | None = None,
    ) -> Walk:
        """Walk by eq. (7) until near the target, take the drift back, then go straight to it."""
        target, walker = self.goal.weights, self.walker
        gap = float((target - expert.weights).norm())
        walk = WeightWalkOptions(
            steps=self.options.walk.steps or WeightWalkOptions.steps,
            radius=max(WeightWalkOptions.radius, gap / 400),  # else far networks are never reached
            damping=self.options.walk.damping,
            least=damping,
        )
        if self.kind.isotropic:  # nothing drifts back: the path is the line
            line = walk_straight(expert.weights, target, EuclideanMetric(), walk.steps, state)
            return Walk(line, walk.steps)
        back = FunctionWalkOptions(DAMPING, steps=BACK_STEPS, learning_rate=RATE)
        points = walker.approach_and_close(expert, target, walk, state, back, constraints)
        return Walk(points, walk.steps + back.steps + STRAIGHT_STEPS)

    def measurements(self, steps: int) -> int:
        """Return the number of further measurements of the metric."""
        return steps // WeightWalkOptions.refresh

    def steps_of(self, stage: Stage) -> int:
        """Return the points of the way out, back and straight to the target."""
        steps = self.options.walk.steps or WeightWalkOptions.steps
        return steps if self.kind.isotropic else steps + BACK_STEPS + STRAIGHT_STEPS

    def describe(self) -> list[LegDescription]:
        """Return the only leg, from one network to the other."""
        assert self.start is not None
        name = self.start.name
        return [self._described(name, self.goal.name, (name,), self._measured(name))]


def _roles(space: WeightSpace) -> tuple[Expert, Expert]:
    """Return the network that is kept, the first with inputs, and the other."""
    a, b = space
    return (b, a) if a.inputs is None else (a, b)
