"""Base class of presets: stages of walks between networks, and the legs that close their path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from geomerge.expert import Expert
from geomerge.merging.measuring import inputs_of, measured_together
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.walker import CLOSE_STEPS, STRAIGHT_STEPS, Walk, Walker, close_refresh
from geomerge.metrics import METRICS
from geomerge.options import replace_options
from geomerge.walks.constraints import Constraints
from geomerge.walks.state import WalkState
from geomerge.walks.walk import FunctionWalkOptions

__all__ = ["LegDescription", "Preset", "Stage", "StageWalk", "Start"]

LEARNED_FROM = 1e-6


@dataclass(frozen=True)
class Stage:
    """One walk, tried with several dampings.

    Attributes:
        kept: Experts whose functions the metric keeps; empty where it keeps all that are learned.
        learned: Experts whose functions the walk goes toward, on their inputs.
        candidates: Dampings, one walk each.
        target: Expert whose weights the walk goes toward; None in a walk toward functions.
    """

    kept: tuple[Expert, ...]
    learned: tuple[Expert, ...]
    candidates: tuple[float, ...]
    target: Expert | None = None

    @property
    def toward(self) -> tuple[Expert, ...]:
        """Experts that the walk goes toward."""
        return self.learned if self.target is None else (*self.learned, self.target)

    @property
    def experts(self) -> tuple[Expert, ...]:
        """All experts of this stage."""
        return self.kept + self.toward


@dataclass(frozen=True)
class Start:
    """Point that a walk may start from.

    Attributes:
        name: Description.
        weights: Weights, shape (n,).
        margin: Value of the pick rule by which it must be ahead of the starts before it.
    """

    name: str
    weights: Tensor
    margin: float = 0.0


@dataclass(frozen=True)
class LegDescription:
    """Leg of the finished path, in words.

    Attributes:
        start: Name of the network that the leg starts from.
        end: Name of its end: a network, or "the crossover".
        keeps: Names of the networks whose functions the metric kept.
        metric: Metric, where it was measured and when.
    """

    start: str
    end: str
    keeps: tuple[str, ...]
    metric: str


class StageWalk(Protocol):
    """Maker of the walks of one stage, one for each candidate."""

    def __call__(
        self,
        damping: float,
        state: WalkState,
        rate: float = 1.0,
        constraints: Constraints | None = None,
    ) -> Walk:
        """Return the walk of a candidate.

        Args:
            damping: Damping mu; the first one where it is learned.
            state: State of the walk, which goes on where it was.
            rate: Share of the usual learning rate.
            constraints: Budgets that the walk must keep.
        """
        ...


class Preset(ABC):
    """Scheme of a merge: starts of its walks, preserved functions, and goals.

    A preset is made for one set of networks and options. It is registered by the decorator
    :func:`~geomerge.merging.presets.registry.preset`, in a module of its own.

    Args:
        prepared: Experts in one weight space, and the options of their merge.

    Attributes:
        name: Name, as in the options and in reports.
        about: Description of the preset, half a sentence.
        preference: Place among the presets that are tried where the options name none; None is
            used by its name only.
        retries: Number of repetitions of a walk that diverges, each at half the learning rate. Of
            the last one the steps before it diverges are kept.
        walks_on: Whether the last walk goes on beyond the picked point to the path's other end.
        start: Expert that the first walk starts from; None is one of :meth:`starts`.
        goal: Expert at the other end of the path.
        stages: Walks, in order; each starts at the point picked of the one before.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    preference: ClassVar[int | None] = None
    retries: ClassVar[int] = 4
    walks_on: ClassVar[bool] = False

    start: Expert | None
    goal: Expert
    stages: tuple[Stage, ...]

    def __init__(self, prepared: PreparedMerge) -> None:
        self.prepared = prepared
        self.space = prepared.space
        self.options = prepared.options
        self.kind = METRICS[self.options.measure.metric]
        self.walker = Walker(prepared)

    @classmethod
    @abstractmethod
    def problem(cls, prepared: PreparedMerge) -> str | None:
        """Return the reason why the preset cannot be used, with the remedy; None where it can.

        Args:
            prepared: Experts in one weight space, and the options of their merge.
        """

    def conflict(self) -> str | None:
        """Return the conflict of the options with the data; None without any."""
        return None

    @abstractmethod
    def stage_walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> StageWalk:
        """Return the maker of a stage's walks; a shared metric is measured here.

        Args:
            stage: One of the stages.
            start: Point that the walks start from.
        """

    @abstractmethod
    def measurements(self, steps: int) -> int:
        """Return the number of measurements of the metric along a walk.

        Args:
            steps: Largest number of points of the walk.
        """

    def steps_of(self, stage: Stage) -> int:
        """Return the largest number of points of a stage's walk.

        Args:
            stage: One of the stages.
        """
        return (self.options.walk.steps or FunctionWalkOptions.steps) * max(1, len(stage.learned))

    def measuring(self, stage: Stage) -> tuple[int, int]:
        """Return the number of measurements of the metric in a stage, and of all their inputs.

        Where each expert's is measured by itself, their sum counts as one more.

        Args:
            stage: One of the stages.
        """
        if self.kind.isotropic:
            return 0, 0
        times = self.measurements(self.steps_of(stage)) * len(stage.candidates)
        experts = [e for e in stage.kept or stage.learned if e.inputs is not None]
        apart = 1 if measured_together(experts) else len(experts) + 1
        counts = [len(inputs_of(expert)) for expert in experts]
        return apart * times, times * sum(min(self.metric_inputs, count) for count in counts)

    @property
    def metric_inputs(self) -> int:
        """Largest number of inputs of each expert in a measurement of the walks' metric."""
        return self.kind.inputs

    @property
    def close_steps(self) -> int:
        """Most points of a leg that closes the path."""
        walked = 0 if self.straight_legs else CLOSE_STEPS
        return walked + STRAIGHT_STEPS

    def again(self, **changes: Any) -> Preset:
        """Return the same preset for the same experts, with other options.

        Args:
            changes: Options by name.
        """
        options = replace_options(self.options, **changes)
        return type(self)(replace(self.prepared, options=options))

    def starts(self) -> Iterator[Start]:
        """Yield the points that the first walk may start from, the usual one first.

        Of several the best by the pick rule is taken, before any walk.
        """
        if self.start is not None:
            yield Start(self.start.name, self.start.weights)
        else:
            yield Start("the mean of the weights", self.space.settle(self.space.middle()))

    @property
    def walked_on(self) -> tuple[Expert, ...]:
        """Experts whose inputs the candidates are walked on."""
        return tuple(expert for stage in self.stages for expert in stage.learned)

    @property
    def predicts_drifts(self) -> bool:
        """Whether the drift from an expert without inputs is predicted by its sketch."""
        return False

    @property
    def bounds_predictions(self) -> bool:
        """Whether budgets bound the drifts that sketches predict, even where there are inputs."""
        return False

    @property
    def straight_legs(self) -> bool:
        """Whether legs that close the path are lines in place of the walks they are elsewhere."""
        return self.walker.straight_legs

    @property
    def open_ends(self) -> tuple[Expert, ...]:
        """Ends of the path that no walk started from or reached; a closing leg starts at each."""
        return tuple(expert for expert in self.space.ends if expert is not self.start)

    def close(
        self,
        end: Expert,
        crossover: Tensor,  # (n,)
        state: WalkState,
    ) -> Walk:
        """Return a closing leg's walk, from an open end to exactly the crossover."""
        if self.straight_legs and self.options.walk.legs is None:
            note = (
                f"the path from {' and from '.join(e.name for e in self.open_ends)} to the "
                "crossover is a straight line, which for large networks takes far less time than a "
                "walk that keeps the function; `legs` walked takes that"
            )
            if note not in self.prepared.notes:
                self.prepared.notes.append(note)
        return self.walker.reach(end, crossover, state)

    def closing_measurements(self, end: Expert, steps: int) -> int:
        """Return the number of measurements of the metric in a closing leg.

        Args:
            end: Open end of the path.
            steps: Number of points of the leg.
        """
        return 1 if self.straight_legs else steps // close_refresh(end.network) + 1

    def closing_steps(
        self,
        end: Expert,
        crossover: Tensor,  # (n,)
        fall: float | None = None,
    ) -> int:
        """Return about how many points a closing leg has.

        Args:
            end: Open end of the path.
            crossover: Picked point, or one as far away.
            fall: Mean decrease of the distance in the leg's first steps; None where not known.
        """
        return self.walker.steps_to_reach(end, crossover, fall)

    def shortcut(
        self,
        start: Tensor,  # (n,)
        step: int,
        crossover: Tensor,  # (n,)
        state: WalkState,
    ) -> Walk | None:
        """Return a shorter walk to the pick than the one it was found on; None keeps that one.

        Args:
            start: Point that the stage's walks started from.
            step: Step of the pick.
            crossover: Picked point, where the walk ends.
            state: State of the walk.
        """
        return None

    def describe(self) -> list[LegDescription]:
        """Return the legs of the finished path, in the order of their networks."""
        return [self._leg(expert) for expert in self.space.ends]

    def _leg(self, expert: Expert) -> LegDescription:
        if self.straight_legs and expert in self.open_ends:
            label = self.kind.label(self.options.measure.output)
            at = "" if self.kind.isotropic else f", measured on {expert.name}'s inputs at its start"
            text = f"straight line, its length in the metric {label}{at}"
            return LegDescription(expert.name, "the crossover", (), text)
        return self._described(
            expert.name, "the crossover", (expert.name,), self._measured(expert.name)
        )

    def _described(
        self, start: str, end: str, keeps: tuple[str, ...], metric: str
    ) -> LegDescription:
        if self.kind.isotropic:
            return LegDescription(start, end, (), self.kind.name)
        return LegDescription(start, end, keeps, metric)

    def _measured(self, name: str) -> str:
        label = self.kind.label(self.options.measure.output)
        return f"{label}, measured on {name}'s inputs as it goes"

    def diagonal_only(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> tuple[str, ...]:
        """Return the tensors of which the metric of a walked stage holds only the diagonal."""
        return self.walker.diagonal_only(stage.kept or tuple(self.space), start)

    def _candidates(self, usual: tuple[float, ...]) -> tuple[float, ...]:
        """Return the dampings to try, the usual ones by default."""
        if self.options.walk.damping is not None:
            return (self.options.walk.damping,)
        if self.options.walk.learn == "damping":
            return (LEARNED_FROM,)
        # Damping an isotropic metric changes nothing.
        return (0.0,) if self.kind.isotropic else usual
