"""Walks to a sparse network: recorded in a folder and scored without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from geomerge.evaluation.accuracy import accuracy
from geomerge.metrics import MaskedMetric, Metric
from geomerge.monitor.progress import Progress
from geomerge.paths.leg import Leg, record_leg
from geomerge.processes import alone
from geomerge.pruning.cost import STEP_PASSES
from geomerge.pruning.learning_rate import plane_walk_options
from geomerge.pruning.masks import prunable, zeros
from geomerge.pruning.options import PruneWalkOptions
from geomerge.pruning.problem import FEW, PruneProblem
from geomerge.walks.objectives import CrossEntropy, MixupDrift, Objective, OutputDrift
from geomerge.walks.plane import PlaneWalkOptions, Prescription, Stage, walk_toward_plane
from geomerge.walks.soft_pull import PullWalkOptions, walk_by_pull
from geomerge.walks.state import StateFile, WalkState
from geomerge.walks.walk import WalkPoint

__all__ = ["START", "PruneWalk", "PruneWalker", "WalkPlace", "soft_pull", "with_zeros"]

START = "start"  # name of the end of a path at which its walk starts
LABEL_RATE = 0.2  # share of the walk's learning rate
LABEL_STEPS = 0.25  # share of the walk's steps
_LABEL_POINTS = 8
_PULL = PlaneWalkOptions(
    PullWalkOptions.least, PullWalkOptions.steps, 0.0, 0.0, PullWalkOptions.refresh
)


@dataclass(frozen=True)
class PruneWalk:
    """A finished walk to a sparse network.

    Attributes:
        name: Name of the walk.
        leg: Stored points of the walk, and records of its steps.
        weights: Last weights, shape (n,).
        settings: Settings of the drift correction.
        agreement: Share of held-out inputs with the dense network's label, in [0, 1].
        seed: Seed of the order of inputs.
    """

    name: str
    leg: Leg
    weights: Tensor
    settings: PlaneWalkOptions
    agreement: float
    seed: int


@dataclass(frozen=True)
class WalkPlace:
    """Name of a walk, and files of its points and state.

    Attributes:
        name: Name of the walk, for progress and reports.
        folder: Folder of the stored points.
        number: Index of the walk from 0, which determines its default damping and its order of
            inputs.
        file: State of the walk. An interrupted walk is resumed; its cost does not change.
    """

    name: str
    folder: Path
    number: int = 0
    file: StateFile = field(default_factory=StateFile)


@dataclass(frozen=True)
class PruneWalker:
    """Runner of a problem's walks, which records and scores them.

    Attributes:
        problem: Network whose function is preserved.
        options: Stages and steps of the walks.
        points: Largest number of networks stored for each walk.
        on_progress: Function called after each point, or None.
    """

    problem: PruneProblem
    options: PruneWalkOptions
    points: int
    on_progress: Callable[[Progress], None] | None = None

    def walk(
        self,
        start: Tensor,  # (n,)
        stages: list[Stage],
        place: WalkPlace,
    ) -> PruneWalk:
        """Walk through stages, with drift correction after each.

        Args:
            start: First weights.
            stages: Stages, for one walk only, since they store the removed weights.
            place: Name and files of the walk.
        """
        problem, state = self.problem, place.file.state
        settings = plane_walk_options(problem, self.options, place.number)
        seed = problem.seed + place.number
        walk = walk_toward_plane(
            start, [with_zeros(problem, start, stage) for stage in stages],
            _metric_at(problem, state), self._against_drift(seed, state), settings,
            problem.settle, place.file, large=problem.large_drift,
        )  # fmt: skip
        leg = self._record(start, walk, 2 * len(stages), place)
        return self._scored(place.name, leg, settings, seed)

    def pull(
        self,
        start: Tensor,  # (n,)
        plane: Stage,
        place: WalkPlace,
    ) -> PruneWalk:
        """Walk by the soft pull of arXiv 2012.09605.

        Args:
            start: First weights.
            plane: Function that returns the target of a step.
            place: Name and files of the walk.
        """
        problem, state = self.problem, place.file.state
        walk = soft_pull(problem, start, plane, _metric_at(problem, state), state)
        leg = self._record(start, walk, PullWalkOptions.steps + 1, place)
        return self._scored(place.name, leg, _PULL, problem.seed + place.number)

    def finish_with_labels(self, walked: PruneWalk, file: StateFile | None = None) -> PruneWalk:
        """Extend a walk by a leg that learns from labels on the plane where the walk ended.

        Args:
            walked: Finished walk, whose leg is extended.
            file: State of the leg with labels.
        """
        problem, file = self.problem, StateFile() if file is None else file
        settings = replace(
            walked.settings,
            learning_rate=LABEL_RATE * walked.settings.learning_rate,
            steps=max(1, round(LABEL_STEPS * walked.settings.steps)),
        )
        train = problem.train
        labels = CrossEntropy(problem.network, train, self.options.batch, walked.seed)
        batch = min(self.options.batch, len(train.labels))
        direction = _counted(problem, labels, STEP_PASSES * batch, file.state)
        free = (walked.weights != 0) & problem.network.movable

        def stay(w: Tensor, metric: Metric) -> Prescription:
            return Prescription(w, free, 0.0)

        walk = walk_toward_plane(
            walked.weights, [stay], _metric_at(problem, file.state), direction, settings,
            problem.settle, file, large=math.log(problem.task.classes),
        )  # fmt: skip
        problem.cost.kept_in(file.state.part("cost"))
        folder = walked.leg.folder / "labels"
        leg = record_leg(
            folder, "labels", walked.weights, walk, _LABEL_POINTS, self._step_meter(), file
        )
        walked.leg.extend(leg)
        return self._scored(walked.name, walked.leg, walked.settings, walked.seed)

    def _against_drift(
        self, seed: int, state: WalkState
    ) -> Callable[[Tensor], tuple[float, Tensor]]:
        """Return the objective of the drift, at the walk's next batch."""
        problem, inputs, output = self.problem, self.problem.inputs, self.problem.output
        network, batch = problem.network, min(self.options.batch, len(inputs))
        if problem.mix > 0:
            mixed = MixupDrift(network, problem.weights, inputs, output, batch, seed, problem.mix)
            return _counted(problem, mixed, (STEP_PASSES + 1) * batch, state)
        plain = OutputDrift(network, problem.outputs, inputs, output, batch, seed)
        return _counted(problem, plain, STEP_PASSES * batch, state)

    def _record(
        self,
        start: Tensor,  # (n,)
        walk: Iterator[WalkPoint],
        count: int,
        place: WalkPlace,
    ) -> Leg:
        self.problem.cost.kept_in(place.file.state.part("cost"))
        watched = self._watched(walk, place.name, count, place.file.steps)
        return record_leg(
            place.folder, START, start, watched, self.points, self._step_meter(), place.file
        )

    def _step_meter(self) -> Callable[[Tensor, Tensor], float]:
        """Return a function that measures the drift of each step and counts its cost."""
        held_out = self.problem.held_out
        change = held_out.step_meter()

        def counted(before: Tensor, after: Tensor) -> float:
            self.problem.cost.add(len(held_out))
            return change(before, after)

        return counted

    def _watched(
        self, walk: Iterator[WalkPoint], title: str, count: int, taken: int
    ) -> Iterator[WalkPoint]:
        problem = self.problem
        few = problem.task.select.first(FEW)
        for k, point in enumerate(walk, taken + 1):
            if self.on_progress is not None:
                with alone():  # other processes do not report progress
                    w, like = point.weights, problem.few_dense_labels
                    shares = {
                        problem.task.name: accuracy(problem.network, w, few),
                        "as dense": accuracy(problem.network, w, like),
                    }
                self.on_progress(Progress(title, k, count, shares))
            yield point

    def _scored(self, name: str, leg: Leg, settings: PlaneWalkOptions, seed: int) -> PruneWalk:
        w = leg.weights(leg.marks[-1][0])
        agreement = accuracy(self.problem.network, w, self.problem.dense_labels)
        return PruneWalk(name, leg, w, settings, agreement, seed)


def soft_pull(
    problem: PruneProblem,
    start: Tensor,  # (n,)
    plane: Stage,
    metric_at: Callable[[Tensor], Metric],
    state: WalkState | None = None,
) -> Iterator[WalkPoint]:
    """Walk by the soft pull of arXiv 2012.09605.

    Args:
        problem: Network.
        start: First weights.
        plane: Function that returns the target of a step.
        metric_at: Function that measures the metric at a point.
        state: State of the walk.
    """
    target = with_zeros(problem, start, plane, pulled=True)
    held = problem.network.held

    def measure(w: Tensor) -> Metric:
        metric = metric_at(w)  # a pull moves all weights that are not frozen
        return metric if held is None else MaskedMetric(metric, ~held)

    return walk_by_pull(start, target, measure, PullWalkOptions(), problem.settle, state)


def with_zeros(
    problem: PruneProblem,
    start: Tensor,  # (n,)
    stage: Stage,
    pulled: bool = False,
) -> Stage:
    """Return a stage in which weights that are zero at the start stay zero.

    Args:
        problem: Network.
        start: First weights of the walk.
        stage: Stage.
        pulled: Whether the walk moves weights that are not free.
    """
    zero = zeros(start, prunable(problem.network))

    def at(w: Tensor, metric: Metric) -> Prescription:
        wanted = stage(w, metric)
        # A pull moves all weights; a prescribed stage can restore weights that were zero.
        target = torch.where(zero, 0.0, wanted.target) if pulled else wanted.target
        return replace(wanted, target=target, free=wanted.free & ~zero)

    return at


def _metric_at(problem: PruneProblem, state: WalkState) -> Callable[[Tensor], Metric]:
    """Return a function that measures metrics and counts each once, despite interruptions."""
    before = state.tensors.get("measured")

    def at(w: Tensor) -> Metric:
        if w is not before:
            return problem.metric_at(w)
        with problem.cost.free():
            return problem.metric_at(w)

    return at


def _counted(
    problem: PruneProblem, direction: Objective, passes: int, state: WalkState
) -> Callable[[Tensor], tuple[float, Tensor]]:
    direction.skip(state.values.get("batches", 0))

    def counted(w: Tensor) -> tuple[float, Tensor]:
        problem.cost.add(passes)
        return direction(w)

    return counted
