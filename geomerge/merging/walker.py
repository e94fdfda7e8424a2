"""Parts of the presets' walks: teachers, metrics at a point, settings, legs to a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from geomerge.data import Inputs
from geomerge.data.changed_images import ChangedImages
from geomerge.data.replaced_tokens import ReplacedTokens
from geomerge.errors import first_few
from geomerge.evaluation.drift import LARGE, Probe
from geomerge.expert import Expert
from geomerge.merging.few_texts import TEXTS, joined_texts, token_replacement
from geomerge.merging.measuring import inputs_of
from geomerge.merging.prepare import PreparedMerge
from geomerge.metrics import METRICS, EuclideanMetric, MaskedMetric, Metric, combine
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.steps import precondition
from geomerge.walks.constraints import Constraints
from geomerge.walks.damping import DampingLearner
from geomerge.walks.mixed_batches import KLToTeachers
from geomerge.walks.objectives import KLToTeacher, Targets, log_probabilities
from geomerge.walks.state import WalkState
from geomerge.walks.walk import (
    FunctionWalkOptions,
    WalkPoint,
    WeightWalkOptions,
    walk_straight,
    walk_toward_function,
    walk_toward_weights,
)

__all__ = [
    "CLOSE_STEPS",
    "DAMPING",
    "RATE",
    "STRAIGHT_STEPS",
    "Walk",
    "Walker",
    "close_refresh",
    "steps_taken",
]

DAMPING = 1e-3  # damping of corrections and of legs that close a path
RATE = 0.1  # learning rate of corrections
# Walks that end well rise by 6 % at most. Of two transformers trained on halves of digits the walk
# that was walked again ended better with 2 than with 4, where at the usual rate it ends at chance.
_RISE = 2.0
STRAIGHT_STEPS = 20
CLOSE_STEPS = 300  # largest number of steps of legs that close a path
_REFRESH, _LARGE_REFRESH = 12, 24  # steps of these legs between two measurements of the metric
# Share of the distance that they leave to the straight end. Directions that change the function are
# what is left there, and a walk that spares them still leads far around: on digits, and from MNIST
# to Fashion-MNIST, legs that go on to 5 % take more steps and are longer in function.
CLOSE_UNTIL = 0.4


class Walk(NamedTuple):
    """Walk that can be followed.

    Attributes:
        points: Points, generated one by one.
        steps: Largest number of points.
    """

    points: Iterator[WalkPoint]
    steps: int


class Walker:
    """Parts of walks that keep or copy functions of experts on their inputs.

    Args:
        prepared: Merge whose experts are walked between.
    """

    def __init__(self, prepared: PreparedMerge) -> None:
        self._prepared = prepared
        self._walk = prepared.options.walk
        self._isotropic = METRICS[prepared.options.measure.metric].isotropic
        self._targets: dict[str, Tensor] = {}
        self._replacements: dict[str, ReplacedTokens | None] = {}
        self._diagonal: tuple[str, ...] | None = None  # as the last measured metric has it

    def direction(
        self,
        expert: Expert,
        batch: int = FunctionWalkOptions.batch,
        others: Sequence[Expert] = (),
    ) -> KLToTeacher:
        """Return the direction toward an expert's function, from the first batch on.

        Args:
            expert: Teacher.
            batch: Number of inputs per gradient.
            others: Experts whose texts the teacher answers for too, where its own are few.
        """
        seed, inputs = self._prepared.options.machine.seed, self._inputs(expert)
        network, teacher = expert.network, _teacher(expert)
        if self._walk.augment is not None:
            images = ChangedImages(self._walk.augment, seed)
            return KLToTeacher(network, teacher, inputs, batch, seed, images)
        change = self.replacement(expert)
        if change is None:
            return KLToTeacher(network, self.targets(expert), inputs, batch, seed)
        known = [self._inputs(e) for e in others if e.inputs is not None]
        texts = joined_texts(inputs, known, seed)
        return KLToTeacher(network, teacher, texts, TEXTS, seed, change)

    def replacement(self, expert: Expert) -> ReplacedTokens | None:
        """Return the replacement of tokens in walks toward an expert; None leaves its inputs."""
        if self._prepared.base is None or expert.inputs is None:
            return None
        if expert.name not in self._replacements:
            seed = self._prepared.options.machine.seed
            found = token_replacement(expert, self._inputs(expert), seed)
            self._replacements[expert.name] = found
        return self._replacements[expert.name]

    def mixed_direction(self, experts: Sequence[Expert]) -> KLToTeachers:
        """Return the direction toward the functions of several experts on mixed batches.

        A batch has as many inputs as one of :meth:`direction`, in equal shares.
        """
        network = self._prepared.space.network
        most = min(FunctionWalkOptions.batch, network.max_batch or FunctionWalkOptions.batch)
        share = max(1, most // len(experts))
        parts = [(e.network.columns, self.direction(e, share)) for e in experts]
        # In one head, answers of different networks for one input would contradict each other.
        answers_all = self._walk.augment is not None and self._prepared.space.head == "separate"
        return KLToTeachers(network, parts, answers_all)

    def targets(self, expert: Expert) -> Targets:
        """Return an expert's log-probabilities on its inputs, or what computes them for a batch."""
        if self._inputs(expert).at_once is not None:
            return _teacher(expert)
        if expert.name not in self._targets:
            self._targets[expert.name] = log_probabilities(
                expert.network, expert.weights, self._inputs(expert)
            )
        return self._targets[expert.name]

    def _inputs(self, expert: Expert) -> Inputs:
        return inputs_of(self._prepared.learned_on(self._prepared.with_surrogates(expert)))

    def probe(self, kept: Sequence[Expert]) -> Probe | None:
        """Return the probe of steps: where one function is kept, and there are inputs for it."""
        return self._prepared.probe(kept[0]) if len(kept) == 1 else None

    def metric_at(
        self, experts: Sequence[Expert], damping: float, more: Metric | None = None
    ) -> Callable[[Tensor], Metric]:
        """Return the function that measures experts' metric, cheap for a known damping.

        Args:
            experts: Experts.
            damping: mu of the steps to come.
            more: Metric of the same kind that is added to it.
        """
        if self._isotropic:
            return lambda w: self.on_plane(EuclideanMetric())
        measured = self._prepared.metric_of(experts)

        def measure(w: Tensor) -> Metric:
            metric = measured(w)
            if more is not None:
                metric = combine([metric, more])
            self._diagonal = metric.diagonal_only
            self._say(metric.one_by_one)
            return self.on_plane(metric.truncate(damping))

        return measure

    def _say(self, names: tuple[str, ...]) -> None:
        """Note for which weights measuring took long."""
        if not names:
            return
        note = (
            f"the metric of {first_few(names)} was measured input by input, which takes long: they "
            "are used in a way that no cheaper form is known for"
        )
        if note not in self._prepared.notes:
            self._prepared.notes.append(note)

    def diagonal_only(
        self,
        experts: Sequence[Expert],
        w: Tensor,  # (n,)
    ) -> tuple[str, ...]:
        """Return the tensors of which the metric holds only the diagonal.

        Args:
            experts: Experts whose metric is measured where none was before: walks that were
                finished by an interrupted call measure nothing.
            w: Point where it is measured then.
        """
        if self._isotropic:
            return ()
        if self._diagonal is None:
            self.metric_at(experts, 0.0)(w)
        assert self._diagonal is not None
        return self._diagonal

    def on_plane(self, metric: Metric) -> Metric:
        """Return the metric in which weights that no walk may move do not move."""
        still = self._prepared.still
        return metric if still is None else MaskedMetric(metric, ~still)

    def settings(
        self, damping: float, rate: float, refresh: tuple[int, ...] = (0,)
    ) -> FunctionWalkOptions:
        """Return the settings of a walk toward functions."""
        steps = self._walk.steps or FunctionWalkOptions.steps
        return FunctionWalkOptions(damping, steps, rate, refresh=refresh, rise=_RISE)

    def learner(
        self,
        damping: float,
        state: WalkState,
        kept: Callable[[Tensor], Tensor] | None = None,
    ) -> DampingLearner | None:
        """Return the learner of the damping along a walk, None where the options fix it.

        Args:
            damping: First damping.
            state: State of the walk.
            kept: Gradient of the kept function's distance at a point; None if nothing is kept.
        """
        if self._walk.learn != "damping":
            return None
        return DampingLearner(damping, kept, state.part("learner"))

    def steps_to_reach(
        self,
        expert: Expert,
        target: Tensor,  # (n,)
        fall: float | None = None,
    ) -> int:
        """Return about how many steps :meth:`reach` takes; its largest number is far more.

        Args:
            expert: Expert at the start.
            target: Target of the walk.
            fall: Mean decrease of the distance in the first steps; None takes that of steps
                straight toward the target.
        """
        if self.straight_legs:
            return STRAIGHT_STEPS
        settings, gap = self._reaching(expert, target)
        left = gap - max(settings.until * gap, settings.radius)
        each = settings.radius if fall is None else max(fall, 1e-12 * settings.radius)
        return min(settings.steps, max(0, math.ceil(left / each))) + STRAIGHT_STEPS

    def _reaching(
        self,
        expert: Expert,
        target: Tensor,  # (n,)
    ) -> tuple[WeightWalkOptions, float]:
        """Return the settings of a walk to a target, and the distance to it."""
        gap = float((target - expert.weights).norm())
        walk = WeightWalkOptions(
            steps=CLOSE_STEPS, radius=max(0.1, gap / 100), damping=DAMPING,
            refresh=close_refresh(expert.network), until=CLOSE_UNTIL,
        )  # fmt: skip
        return walk, gap

    def reach(
        self,
        expert: Expert,
        target: Tensor,  # (n,)
        state: WalkState,
    ) -> Walk:
        """Walk from an expert to exactly the target, keeping the expert's function on the way.

        Straight legs are the line between them, in the metric at the expert. A walk that was begun
        before is finished as a walk.
        """
        if self.straight_legs and not steps_taken(state.part("near")):
            return Walk(self._line(expert, target, state), STRAIGHT_STEPS)
        walk, _ = self._reaching(expert, target)
        points = self.approach_and_close(expert, target, walk, state)
        return Walk(points, walk.steps + STRAIGHT_STEPS)

    @property
    def straight_legs(self) -> bool:
        """Whether legs that close the path are straight lines.

        By default those of large networks are: walked ones take several times as many steps as the
        walks that find the crossover.
        """
        if self._walk.legs is None:
            return self._prepared.space.network.n >= LARGE
        return self._walk.legs == "straight"

    def _line(
        self,
        expert: Expert,
        target: Tensor,  # (n,)
        state: WalkState,
    ) -> Iterator[WalkPoint]:
        metric = self.metric_at([expert], DAMPING)(expert.weights)
        yield from walk_straight(expert.weights, target, metric, STRAIGHT_STEPS, state)

    def approach_and_close(
        self,
        expert: Expert,
        target: Tensor,  # (n,)
        walk: WeightWalkOptions,
        state: WalkState,
        back: FunctionWalkOptions | None = None,
        constraints: Constraints | None = None,
    ) -> Iterator[WalkPoint]:
        """Walk from an expert to near a target, back toward its function, and to the target.

        Args:
            expert: Expert whose function is kept.
            target: Weights to end at.
            walk: Settings of the walk toward the target.
            state: State of the walk.
            back: Settings of the walk that takes the drift back; None leaves it out.
            constraints: Budgets that the walk must keep, its straight end excepted.

        Yields:
            One point per step.
        """
        near, returned = state.part("near"), state.part("back")
        metric_at = self.metric_at([expert], walk.damping or walk.least)
        if not near.values.get("over"):
            correct = None
            if not self._isotropic:
                correct = self._corrector(expert, steps_taken(near))
            yield from walk_toward_weights(
                expert.weights, target, metric_at, walk, correct, constraints, near
            )
            near.values["over"] = True
        w = near.tensors.get("w", expert.weights)
        if back is not None and not returned.values.get("over"):
            metric_back = self.metric_at([expert], DAMPING)
            direction = self.direction(expert)
            direction.skip(steps_taken(returned))
            yield from walk_toward_function(
                w, metric_back, [direction], back, budgets=constraints, state=returned
            )
            returned.values["over"] = True
        w = returned.tensors.get("w", w)
        yield from walk_straight(w, target, metric_at(w), STRAIGHT_STEPS, state.part("straight"))

    def _corrector(self, expert: Expert, steps: int) -> Callable[[Metric, Tensor], Tensor]:
        """Return one preconditioned step back toward the function, against accumulated drift."""
        direction = self.direction(expert)
        direction.skip(steps)

        def correct(metric: Metric, w: Tensor) -> Tensor:
            _, v = direction(w)
            return w + RATE * precondition(metric, v, DAMPING)

        return correct


def close_refresh(network: Network) -> int:
    """Return the steps between two measurements of the metric on legs that close a path.

    Of a large network a measurement takes as long as a dozen steps.
    """
    return _REFRESH if network.n < LARGE else _LARGE_REFRESH


def _teacher(expert: Expert) -> Callable[[Batch], Tensor]:
    """Return what computes an expert's log-probabilities for a batch."""
    network, w = expert.network, expert.weights
    return lambda x: network.logits_by_precision(w, x).log_softmax(dim=1)


def steps_taken(state: WalkState) -> int:
    """Return the number of earlier steps of a walk."""
    return int(state.values.get("step", 0))
