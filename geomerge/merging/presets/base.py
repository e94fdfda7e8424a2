"""Base class of presets: stages of walks between networks, and the legs that close their path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from geomerge.errors import OptionError
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import PickRule, parse_pick
from geomerge.merging.options import MergeOptions
from geomerge.merging.presets.registry import PRESETS
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walker import Walk, Walker
from geomerge.walks.constraints import Constraints
from geomerge.walks.state import WalkState

__all__ = ["LegDescription", "Preset", "Stage", "StageWalk", "choose_preset", "choose_rule"]

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

    kept: tuple[Side, ...]
    learned: tuple[Side, ...]
    candidates: tuple[float, ...]
    target: Side | None = None

    @property
    def toward(self) -> tuple[Side, ...]:
        """Experts that the walk goes toward."""
        return self.learned if self.target is None else (*self.learned, self.target)

    @property
    def experts(self) -> tuple[Side, ...]:
        """All experts that count in this stage."""
        return self.kept + self.toward


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
    """Way to merge networks: where walks start, what they keep, and what they go toward.

    A preset is made for one set of networks and options. It is registered by the decorator
    :func:`~geomerge.merging.presets.registry.preset`, in a module of its own.

    Args:
        space: Networks.
        options: Options of the merge.

    Attributes:
        name: Name, as in the options and in reports.
        about: What the preset does, half a sentence.
        preference: Place among the presets that are tried where the options name none; None is
            used by its name only.
        retries: How often a walk that diverges is walked again, each time at half the rate.
        walks_on: Whether the last walk goes on beyond the picked point to the path's other end.
        start: Expert that the first walk starts from; None is the middle of all.
        goal: Expert at the other end of the path.
        stages: Walks, in order; each starts at the point picked of the one before.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    preference: ClassVar[int | None] = None
    retries: ClassVar[int] = 4
    walks_on: ClassVar[bool] = False

    start: Side | None
    goal: Side
    stages: tuple[Stage, ...]

    def __init__(self, space: Sides, options: MergeOptions) -> None:
        self.space = space
        self.options = options
        self.walker = Walker(space, options)

    @classmethod
    @abstractmethod
    def problem(cls, space: Sides, options: MergeOptions) -> str | None:
        """Return why the preset cannot be used, with the remedy; None where it can.

        Args:
            space: Networks.
            options: Options of the merge.
        """

    @abstractmethod
    def stage_walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> StageWalk:
        """Return what makes the walks of a stage; a metric that they share is measured here.

        Args:
            stage: One of the stages.
            start: Point that the walks start from.
        """

    @abstractmethod
    def measurements(self, steps: int) -> int:
        """Return how often a walk of so many steps measures the metric on its way.

        Args:
            steps: Most points that the walk gives.
        """

    def begin(self) -> Tensor:  # (n,)
        """Return the point where the first walk starts."""
        return self.start.w if self.start else self.space.settled(self.space.middle())

    @property
    def walked_on(self) -> tuple[Side, ...]:
        """Experts whose inputs the candidates are walked on."""
        return tuple(side for stage in self.stages for side in stage.learned)

    @property
    def predicts_drifts(self) -> bool:
        """Whether a sketch stands for an expert that the data does not measure."""
        return False

    @property
    def open_ends(self) -> tuple[Side, ...]:
        """Ends of the path that no walk started from or reached; a closing leg starts at each."""
        ends = (self.space.all[0], self.space.all[-1])
        return tuple(side for side in ends if side is not self.start)

    def close(
        self,
        end: Side,
        crossover: Tensor,  # (n,)
        state: WalkState,
    ) -> Walk:
        """Return a closing leg's walk, from an open end to exactly the crossover."""
        return self.walker.reach(end, crossover, state)

    def describe(self) -> list[LegDescription]:
        """Return the legs of the finished path, in the order of their networks."""
        return [self._leg(side) for side in (self.space.all[0], self.space.all[-1])]

    def _leg(self, side: Side) -> LegDescription:
        return self._described(side.name, "the crossover", (side.name,), self._measured(side.name))

    def _described(
        self, start: str, end: str, keeps: tuple[str, ...], metric: str
    ) -> LegDescription:
        flat = self.options.metric == "euclidean"
        return LegDescription(start, end, () if flat else keeps, "euclidean" if flat else metric)

    def _measured(self, name: str) -> str:
        options = self.options
        return f"{options.metric} ({options.output}), measured on {name}'s inputs as it goes"

    def diagonal_only(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> tuple[str, ...]:
        """Return the tensors of which the metric of a walked stage knows only the diagonal."""
        return self.walker.diagonal_only(stage.kept or tuple(self.space), start)

    def _candidates(self, usual: tuple[float, ...]) -> tuple[float, ...]:
        """Return the dampings that are tried, the usual ones where the options say nothing."""
        if self.options.damping is not None:
            return (self.options.damping,)
        if self.options.learn == "damping":
            return (LEARNED_FROM,)
        # Damping the Euclidean metric changes nothing.
        return (0.0,) if self.options.metric == "euclidean" else usual


def choose_preset(space: Sides, options: MergeOptions) -> Preset:
    """Return the preset that the options name, else the preferred one of those that can be used.

    Args:
        space: Networks.
        options: Options of the merge.

    Raises:
        OptionError: If the data does not allow the preset, or any.
    """
    several = len(space.all) > 2 or all(s.manifold for s in space)
    if options.head == "separate" and options.metric in ("exact", "gram") and several:
        raise OptionError(
            f"`metric` {options.metric} measures several tasks at once only in one block of "
            "outputs; use `metric` kronecker with `head` separate"
        )
    if options.preset is not None:
        tried = [PRESETS[options.preset]]
    else:
        tried = [cls for cls in PRESETS.values() if cls.preference is not None]
    problem = None
    for cls in tried:
        problem = cls.problem(space, options)
        if problem is None:
            return cls(space, options)
    assert problem is not None
    raise OptionError(problem)


def choose_rule(preset: Preset, options: MergeOptions) -> PickRule:
    """Return the pick rule that the options name, or the best that the data allows.

    Args:
        preset: Preset of the merge.
        options: Options of the merge.

    Raises:
        OptionError: If the rule needs data that is not there.
    """
    experts = {
        side.name: accuracy(side.network, side.w, side.task.select) if side.task else None
        for side in preset.space
    }
    unlabelled = [name for name, value in experts.items() if value is None]
    drifts = preset.predicts_drifts
    if options.pick is None:
        text = "max-min" if not unlabelled else "equal-drift" if drifts else None
        if text is None:
            known = [name for name in experts if name not in unlabelled]
            text = f"{known[0]}>=0.80" if known else "equal-drift"
        return parse_pick(text, experts)
    rule = parse_pick(options.pick, experts)
    problem = rule.problem(unlabelled, drifts or not unlabelled)
    if problem is not None:
        raise OptionError(problem)
    return rule
