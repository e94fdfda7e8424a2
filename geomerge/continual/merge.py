"""Merge of an expert into the network before an experience.

The first step is straight, to the best point of the line to the expert. From there the walk is
the paper's eq. (7) with momentum, in the metric of the remembered tasks: toward the expert's
function (or down the loss) on the experience's inputs, and back toward the remembered functions on
pseudo-inputs. Of the measured points on its path the best becomes the network. On permutations of
MNIST, one epoch after such a first step is worth more than three that start at the network before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from geomerge.continual.drift_constraints import DriftConstraints, quadratic_drifts
from geomerge.continual.memory import Experience, NetworkOf, TaskMemory, answers
from geomerge.continual.options import ContinualOptions
from geomerge.continual.points import Line, Measure, best_on_line, with_statistics
from geomerge.continual.rehearsal import Rehearsal, RehearsalObjective
from geomerge.continual.report import MergeReport, PathPoint
from geomerge.data import Split
from geomerge.errors import NumericalError, OptionError
from geomerge.metrics import EuclideanMetric, MaskedMetric, Metric, combine
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.networks.batches import batch_size
from geomerge.processes import agree, together
from geomerge.walks.objectives import CrossEntropy, KLToTeacher, Objective
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function

__all__ = ["merge_expert"]

_MARKS = 4  # measured points of a walk
_BATCH = 500
_STEPS = 50  # least steps of an epoch: batches of few inputs are smaller, down to 8
_MANY, _MANY_STEPS = 5, 200  # earlier tasks from which on an epoch has more steps, and how many
_LEAST_BATCH = 8
_RETRIES = 4  # repetitions of a walk that diverges, each at half the learning rate


def merge_expert(
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    experience: Experience,
    memory: Sequence[TaskMemory],
    network_of: NetworkOf,
    options: ContinualOptions,
    free: Tensor | None = None,  # (n,)
) -> tuple[Tensor, MergeReport]:
    """Merge an expert of an experience into the network before it.

    In a process group, whose processes have the same experts, they share the work.

    Args:
        start: Weights of the network before, with heads that the experience added.
        expert: Weights of the expert.
        experience: Inputs of the experience; labels are needed with the option ``labels``.
        memory: Memories of earlier tasks.
        network_of: Function of a head that returns the network with its outputs; its argument is
            None where there are no task labels.
        options: Options of the merge.
        free: Mask of the weights that may move; None is all of them.

    Returns:
        The merged weights, shape (n,), and the report of the merge.

    Raises:
        OptionError: If labels are wanted and missing.
        NumericalError: If the walk diverges at a sixteenth of its learning rate, too.
    """
    if options.walk.labels and experience.labels is None:
        raise OptionError(
            "`labels` needs the labels of the experience; give them, or `labels` as False"
        )
    with together():  # all processes have trained the same expert
        given = f"{options} {len(experience.inputs)}"
        agree("experts or experiences", given, (start, expert))
        merge = _Merge(start, expert, experience, memory, network_of, options, free)
        line = best_on_line(start, expert, merge.measure, merge.settle, merge.limits())
        walk = merge.walk(line.best)
        best = merge.pick(walk)
        return walk.weights[best], merge.report(line, walk, best)


@dataclass
class _Walk:
    """A walk that was taken.

    Attributes:
        path: Measured points, the first step's end first.
        weights: Weights of those points, shape (n,) each.
        length: Length of the path from the network before.
        rate: Learning rate.
        limits: Limits of drift; None without.
        taken: Number of steps taken, those of walks that diverged included.
        notes: Notes on walks that diverged.
    """

    path: list[PathPoint]
    weights: list[Tensor]
    length: float
    rate: float
    limits: DriftConstraints | None
    taken: int = 0
    notes: list[str] = field(default_factory=list)


class _Merge:
    """One merge: what its walks share. The arguments are those of :func:`merge_expert`."""

    def __init__(
        self,
        start: Tensor,  # (n,)
        expert: Tensor,  # (n,)
        experience: Experience,
        memory: Sequence[TaskMemory],
        network_of: NetworkOf,
        options: ContinualOptions,
        free: Tensor | None,  # (n,)
    ) -> None:
        self._start, self._expert = start, expert
        self._experience, self._memory, self._options = experience, memory, options
        self._network = network_of(experience.head)
        self._rehearsal = Rehearsal(memory, network_of, options.walk.rehearsal, options.seed)
        self._drifts = quadratic_drifts(memory, network_of, start)
        metric = self._measured_metric()
        self._step_bytes = self._bytes_of_a_step(metric)
        self._metric = metric if free is None else MaskedMetric(metric, free)
        walk, count = options.walk, len(experience.inputs)
        self._batch = min(walk.batch, max(count // self._least_steps(), _LEAST_BATCH), count)
        self._steps = max(1, round(walk.epochs * count / self._batch))
        self.measure = Measure(
            self._network,
            expert,
            experience.inputs,
            experience.labels if walk.labels else None,
            self._rehearsal,
            self._drifts,
        )

    def settle(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (n,)
        """Return weights with running statistics by the policy of the options."""
        inputs = [self._experience.inputs, *self._rehearsal.inputs]
        return with_statistics(w, self._start, self._expert, self._network, inputs, self._options)

    def limits(self) -> DriftConstraints | None:
        """Return new limits of drift; None without a budget."""
        budget = self._options.budget
        return None if budget is None else DriftConstraints(self._drifts, budget)

    def walk(
        self,
        first: Tensor,  # (n,)
    ) -> _Walk:
        """Walk from the end of the first step, at half the learning rate where a walk diverges."""
        taken = 0
        notes: list[str] = []
        for attempt in range(_RETRIES + 1):
            walk = self._begin(first, self._options.walk.learning_rate * 0.5**attempt)
            try:
                self._finish(walk)
            except NumericalError:
                taken += walk.taken
                if attempt == _RETRIES:
                    raise
                notes.append(
                    f"the walk diverged at a learning rate of {walk.rate:g} and was walked at half"
                )
            else:
                break
        walk.taken += taken
        walk.notes += notes
        return walk

    def pick(self, walk: _Walk) -> int:
        """Return the number of the walk's best measured point."""
        # Statistics that were measured again may have led a point beyond its limit.
        limits = self.limits()
        allowed = [
            i for i, w in enumerate(walk.weights) if limits is None or not i or limits.within(w)
        ]
        return min(allowed, key=lambda i: walk.path[i].value)

    def report(self, line: Line, walk: _Walk, best: int) -> MergeReport:
        """Return the report of the merge."""
        count, options = len(self._experience.inputs), self._options
        stored = sum(batch_size(task.examples) for task in self._memory)
        answered = sum(len(task.targets) for task in self._memory)
        batch = self._batch + (options.walk.rehearsal if self._rehearsal.count else 0)
        limits = walk.limits
        return MergeReport(
            task=self._experience.name,
            path=walk.path,
            line=line.points,
            jumped=line.share,
            picked=walk.path[best].step,
            predicted={drift.name: drift.value(walk.weights[best]) for drift in self._drifts},
            damping=options.walk.damping,
            learning_rate=walk.rate,
            steps=self._steps,
            rows=0 if limits is None else limits.rows,
            solves=0 if limits is None else limits.solved,
            shortened=0 if limits is None else limits.shortened,
            step_bytes=self._step_bytes,
            used={
                "inputs": count,
                "labels": count if options.walk.labels else 0,
                "pseudo_inputs": answered - stored,
                "kept_inputs": stored,
            },
            passes=walk.taken * batch / count,
            notes=walk.notes,
        )

    def _begin(
        self,
        first: Tensor,  # (n,)
        rate: float,
    ) -> _Walk:
        """Return a walk of no steps yet."""
        gap = first - self._start
        reached = self._metric.inner(gap, gap) ** 0.5
        point = self.measure(0, reached, first)
        return _Walk([point], [first], reached, rate, self.limits())

    def _finish(self, walk: _Walk) -> None:
        """Take all steps of a walk and measure some of them."""
        marks = {round(self._steps * i / _MARKS) for i in range(1, _MARKS + 1)}
        settings = self._options.walk
        # The walk's learning rate is that of directions that no task constrains.
        options = FunctionWalkOptions(
            settings.damping, self._steps, walk.rate, settings.momentum, self._batch
        )
        objective = RehearsalObjective(self._objective(), self._rehearsal, self._scale())
        points = walk_toward_function(
            walk.weights[0],
            lambda _: self._metric,
            [objective],
            options,
            budgets=walk.limits,
        )
        for step, point in enumerate(points, start=1):
            walk.taken += 1
            walk.length += point.predicted**0.5
            if step in marks:
                walk.weights.append(self.settle(point.weights))
                walk.path.append(self.measure(step, walk.length, walk.weights[-1]))

    def _least_steps(self) -> int:
        """Return the least number of steps of an epoch: more where there are many earlier tasks.

        The part of the new task in the gradient falls with the root of their number. After 41
        permutations of MNIST, walks of 50, 100 and 200 steps on 5000 images learned the next eight
        with 73, 83 and 87 % right on selection splits, and the earlier ones lost 1 % in each. From
        then on the number is constant, as is the time of a merge.
        """
        return _STEPS if self._rehearsal.count < _MANY else _MANY_STEPS

    def _scale(self) -> float:
        """Return the factor of the mean gradient: the root of the number of remembered tasks.

        The new task is one part of the mean, so that the last of many would hardly be learned. In
        the sum of all tasks' metrics longer steps are possible, since it shortens them where these
        say something. On selection splits of 20 and 60 permutations of MNIST the root ended higher
        than the mean and, with all inputs of 20, than the sum.
        """
        if self._options.metric_tasks != "earlier" or self._metric.isotropic:
            return 1.0
        return math.sqrt(max(1, self._rehearsal.count))

    def _objective(self) -> Objective:
        """Return the objective of the experience, its order of inputs from the beginning."""
        inputs, labels, seed = self._experience.inputs, self._experience.labels, self._options.seed
        if self._options.walk.labels:
            assert labels is not None, "checked before any work"
            split = Split(inputs, labels.to(self._network.device))
            return CrossEntropy(self._network, split, self._batch, seed)
        return KLToTeacher(self._network, self._targets, inputs, self._batch, seed)

    @cached_property
    def _targets(self) -> Tensor:  # (N, m)
        return answers(self._network, self._expert, self._experience.inputs)

    def _measured_metric(self) -> Metric:
        """Return the metric of the walk."""
        options, damping = self._options, self._options.walk.damping
        if not options.metric_kind.needs_inputs:
            inputs, seed = self._experience.inputs, options.seed
            return options.metric_kind.measure(
                self._network, self._start, inputs, options.output, seed
            )
        if options.metric_tasks == "new":
            sample = self._experience.inputs.sample(options.memory.sketch_inputs, options.seed)
            batches = sample.batches(_BATCH)
            measured = estimate_kronecker(
                self._network, self._start, batches, options.output, options.seed
            )
            return measured.truncate(damping)
        names = [task.name for task in self._memory]
        wanted = options.metric_tasks
        if isinstance(wanted, int) and wanted < len(names):
            names = [names[wanted]]  # all of them, as long as there is no such task
        metrics = [drift.metric for drift in self._drifts if drift.name in names]
        if not metrics:  # the first task, or its sketch was merged into another
            return EuclideanMetric()
        return combine(metrics).truncate(damping)

    def _bytes_of_a_step(self, metric: Metric) -> int:
        """Return the bytes that a step holds: the metric, and vectors as long as the weights."""
        rows = 0 if self._options.budget is None else len(self._memory)
        vectors = 4 + 3 * rows  # weights, gradient, momentum, step; constraints and solutions
        return metric.nbytes + vectors * self._start.nbytes
