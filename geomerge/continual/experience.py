"""The merge after an experience: from the network before to one that does both.

The first step is straight, to the best point of the line to the expert. From there the walk is
the paper's eq. (7) with momentum, in the metric of what is remembered: toward the expert's
function (or down the loss) on the experience's inputs, and back toward the remembered functions on
pseudo-inputs. Of the measured points on its path the best becomes the network. On permutations of
MNIST, one epoch after such a first step is worth more than three that start at the network before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from geomerge.budgets import SketchKept
from geomerge.continual.grown import carry_metric
from geomerge.continual.kept import DriftBudgets, quadratic_drifts
from geomerge.continual.memory import UNSEEN, Remembered
from geomerge.continual.rehearsal import Rehearsal, TowardAll
from geomerge.continual.report import MergeReport, PathPoint
from geomerge.continual.settings import MergeSettings
from geomerge.directions import TowardFunction, TowardLabels, divergence, log_probabilities
from geomerge.errors import NumericalError, OptionError
from geomerge.metric import EuclideanMetric, KroneckerMetric, Metric, combine
from geomerge.metric.estimate import estimate_kronecker
from geomerge.network import Network
from geomerge.statistics import has_statistics, re_estimate
from geomerge.tasks import Inputs, Split
from geomerge.walk import FunctionWalk, walk_toward_function

__all__ = ["merge_experience"]

_MARKS = 8  # points of a walk that are measured
_MEASURED = 1000  # inputs of the experience on which they are
_BATCH = 500
_LINE = 10  # parts of the straight line to the expert whose ends are measured
_RETRIES = 4  # of a walk that diverges, each at half the learning rate

NetworkOf = Callable[[int | None], Network]


def merge_experience(
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    inputs: Inputs,
    memory: Sequence[Remembered],
    network_of: NetworkOf,
    settings: MergeSettings,
    *,
    task: str = "new",
    head: int | None = None,
    labels: Tensor | None = None,  # (N,)
) -> tuple[Tensor, MergeReport]:
    """Merge an expert of an experience into the network before it.

    Args:
        start: Weights of the network before; heads that the experience added included.
        expert: Weights of the expert.
        inputs: The experience's inputs.
        memory: What is kept of earlier tasks.
        network_of: The network as a function of the inputs of a head; None where there are no
            task labels.
        settings: Settings.
        task: Name of the experience, for the report.
        head: Its task label.
        labels: Its labels; needed with ``settings.labels``.

    Returns:
        The merged weights and what is known of the merge.

    Raises:
        OptionError: If labels are wanted and missing, or the manifold names no remembered task.
        NumericalError: If the walk diverges at a sixteenth of its learning rate, too.
    """
    if settings.labels and labels is None:
        raise OptionError("labels=True needs the experience's labels; give them or labels=False")
    network = network_of(head)
    rehearsal = Rehearsal(memory, network_of, settings.rehearsal, settings.seed)
    metric = _metric(start, inputs, memory, network_of, network, settings)
    kept = quadratic_drifts(memory, network_of, start)
    measure = _Measure(
        network, expert, inputs, labels if settings.labels else None, rehearsal, kept
    )

    manifolds = [inputs, *rehearsal.inputs]

    def settle(w: Tensor) -> Tensor:
        return _with_statistics(w, start, expert, network, manifolds, settings)

    limits = None if settings.budget is None else DriftBudgets(kept, settings.budget)
    line, jumped, first = _best_on_line(start, expert, measure, settle, limits)
    reached = metric.inner(first - start, first - start) ** 0.5

    steps = max(1, round(settings.epochs * len(inputs) / min(settings.batch, len(inputs))))
    marks = {round(steps * i / _MARKS) for i in range(1, _MARKS + 1)}
    targets = None
    if not settings.labels:
        targets = log_probabilities(network, expert, inputs).clamp(min=UNSEEN)
    notes = []
    for attempt in range(_RETRIES + 1):
        rate = settings.learning_rate * 0.5**attempt
        new: TowardFunction | TowardLabels
        if targets is None:
            assert labels is not None
            new = TowardLabels(
                network, Split(inputs, labels.to(network.device)), settings.batch, settings.seed
            )
        else:
            new = TowardFunction(network, targets, inputs, settings.batch, settings.seed)
        budgets = None if settings.budget is None else DriftBudgets(kept, settings.budget)
        # FunctionWalk's rate is that of directions nothing is kept in, so is ours.
        walk = FunctionWalk(settings.damping, steps, rate, settings.momentum, settings.batch)
        points = walk_toward_function(
            first, lambda _: metric, [TowardAll(new, rehearsal)], walk, budgets
        )
        path, weights, length = [measure(0, reached, first)], [first], reached
        try:
            for step, point in enumerate(points, start=1):
                length += point.predicted**0.5
                if step in marks:
                    weights.append(settle(point.weights))
                    path.append(measure(step, length, weights[-1]))
            break
        except NumericalError:
            if attempt == _RETRIES:
                raise
            notes.append(f"the walk diverged at a learning rate of {rate:g} and was walked at half")
    best = min(range(len(path)), key=lambda i: path[i].value)
    w = weights[best]
    batch = min(settings.batch, len(inputs)) + (settings.rehearsal if rehearsal.count else 0)
    drawn = sum(len(r.targets) - len(r.examples) for r in memory)
    report = MergeReport(
        task=task,
        path=path,
        line=line,
        jumped=jumped,
        picked=path[best].step,
        predicted={k.name: k.value(w) for k in kept},
        damping=settings.damping,
        learning_rate=rate,
        steps=steps,
        rows=0 if budgets is None else budgets.rows,
        solves=0 if budgets is None else budgets.solved,
        shortened=0 if budgets is None else budgets.shortened,
        step_bytes=_step_bytes(metric, start, len(kept) if budgets else 0),
        used={
            "inputs": len(inputs),
            "labels": len(inputs) if settings.labels else 0,
            "pseudo_inputs": drawn,
            "kept_inputs": sum(len(r.examples) for r in memory),
        },
        passes=steps * batch / len(inputs),
        notes=notes,
    )
    return w, report


def _best_on_line(
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    measure: _Measure,
    settle: Callable[[Tensor], Tensor],
    limits: DriftBudgets | None,
) -> tuple[list[PathPoint], float, Tensor]:
    """Return points on the way to the expert, within the budgets, and the best of them.

    What a long walk would reach can be had at once.
    """
    points, weights = [], []
    for i in range(_LINE + 1):
        w = settle(torch.lerp(start, expert, i / _LINE)) if i else start
        if i and limits is not None and not limits.within(w):
            break
        points.append(measure(0, 0.0, w))
        weights.append(w)
    best = min(range(len(points)), key=lambda i: points[i].value)
    return points, best / _LINE, weights[best]


class _Measure:
    """What a point still lacks of the experience, and how far the remembered tasks drifted."""

    def __init__(
        self,
        network: Network,
        expert: Tensor,  # (n,)
        inputs: Inputs,
        labels: Tensor | None,  # (N,)
        rehearsal: Rehearsal,
        kept: Sequence[SketchKept],
    ) -> None:
        self._network = network
        self._rehearsal = rehearsal
        # Of tasks without any inputs the sketch says it: half the Fisher form is the KL, to second
        # order.
        self._sketched = [k for k in kept if k.name not in rehearsal.names]
        index = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:_MEASURED]
        self._x = inputs.batch(index)
        if labels is None:
            self._loss = divergence(
                network.logits(expert, self._x).log_softmax(dim=1).clamp(min=UNSEEN)
            )
        else:
            right = labels[index.to(labels.device)].to(network.device)
            self._loss = lambda logits: torch.nn.functional.cross_entropy(logits, right)

    def __call__(
        self,
        step: int,
        length: float,
        w: Tensor,  # (n,)
    ) -> PathPoint:
        new = float(self._loss(self._network.logits(w, self._x)))
        drift, changed = self._rehearsal.drift(w)
        drift |= {k.name: k.value(w) / 2 for k in self._sketched}
        return PathPoint(step, length, new, drift, changed)


def _metric(
    start: Tensor,  # (n,)
    inputs: Inputs,
    memory: Sequence[Remembered],
    network_of: NetworkOf,
    network: Network,
    settings: MergeSettings,
) -> Metric:
    if settings.metric == "euclidean":
        return EuclideanMetric()
    if settings.manifold == "new":
        sample = inputs.sample(settings.sketch_inputs, settings.seed)
        batches = sample.batches(_BATCH)
        measured = estimate_kronecker(network, start, batches, settings.output, settings.seed)
        return measured.sharpened(settings.damping)
    chosen = memory
    if isinstance(settings.manifold, int):
        if not 0 <= settings.manifold < len(memory):
            raise OptionError(
                f"manifold={settings.manifold} names none of the {len(memory)} remembered tasks, "
                "expected a number from 0 on; name one, 'earlier' or 'new'"
            )
        chosen = [memory[settings.manifold]]
    metrics: list[KroneckerMetric] = [
        carry_metric(r.sketch, r.shapes, network_of(r.head)) for r in chosen if r.sketch is not None
    ]
    if not metrics:  # nothing is to be kept by it, or its sketch was merged into another
        return EuclideanMetric()
    return combine(metrics).sharpened(settings.damping)


def _with_statistics(
    w: Tensor,  # (n,)
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    network: Network,
    manifolds: Sequence[Inputs],
    settings: MergeSettings,
) -> Tensor:  # (n,)
    """Return weights with running statistics by the stated policy."""
    if not has_statistics(network):
        return w
    if settings.statistics == "measured":
        return re_estimate(network, w, manifolds, settings.seed)
    source = expert if settings.statistics == "expert" else start
    return torch.cat([w[: network.n_parameters], source[network.n_parameters :]])


def _step_bytes(
    metric: Metric,
    w: Tensor,  # (n,)
    rows: int,
) -> int:
    """Bytes that a step holds: the metric, and vectors as long as the weights."""
    held = metric.nbytes if isinstance(metric, KroneckerMetric) else 0
    return held + (4 + 3 * rows) * w.nbytes  # weights, gradient, momentum, step; rows and solves
