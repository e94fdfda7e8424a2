"""The merge after an experience: from the network before to one that does both.

The first step is straight, to the best point of the line to the expert. From there the walk is
the paper's eq. (7) with momentum, in the metric of what is remembered: toward the expert's
function (or down the loss) on the experience's inputs, and back toward the remembered functions on
pseudo-inputs. Of the measured points on its path the best becomes the network. On permutations of
MNIST, one epoch after such a first step is worth more than three that start at the network before.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geomerge.continual.kept import DriftConstraints, quadratic_drifts
from geomerge.continual.memory import NetworkOf, TaskMemory, answers
from geomerge.continual.points import Measure, best_on_line, with_statistics
from geomerge.continual.rehearsal import Rehearsal, RehearsalObjective
from geomerge.continual.report import MergeReport
from geomerge.continual.settings import ContinualOptions
from geomerge.data import Inputs, Split
from geomerge.errors import NumericalError, OptionError
from geomerge.metrics import EuclideanMetric, MaskedMetric, Metric, combine
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.networks.batches import batch_size
from geomerge.networks.network import Network
from geomerge.walks.constraints import QuadraticConstraint
from geomerge.walks.objectives import CrossEntropy, KLToTeacher
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function

__all__ = ["merge_expert"]

_MARKS = 4  # points of a walk that are measured
_BATCH = 500
_STEPS = 50  # of an epoch at least: batches of few inputs are smaller, down to 8
_LEAST_BATCH = 8
_RETRIES = 4  # of a walk that diverges, each at half the learning rate


def merge_expert(
    start: Tensor,  # (n,)
    expert: Tensor,  # (n,)
    inputs: Inputs,
    memory: Sequence[TaskMemory],
    network_of: NetworkOf,
    settings: ContinualOptions,
    *,
    task: str = "new",
    head: int | None = None,
    labels: Tensor | None = None,  # (N,)
    free: Tensor | None = None,  # (n,)
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
        free: Mask of the weights that may move; None is all of them.

    Returns:
        The merged weights and what is known of the merge.

    Raises:
        OptionError: If labels are wanted and missing.
        NumericalError: If the walk diverges at a sixteenth of its learning rate, too.
    """
    if settings.labels and labels is None:
        raise OptionError("labels=True needs the experience's labels; give them or labels=False")
    network = network_of(head)
    rehearsal = Rehearsal(memory, network_of, settings.rehearsal, settings.seed)
    kept = quadratic_drifts(memory, network_of, start)
    metric = _metric(start, inputs, kept, [task.name for task in memory], network, settings)
    step_bytes = _step_bytes(metric, start, 0 if settings.budget is None else len(memory))
    if free is not None:
        metric = MaskedMetric(metric, free)
    measure = Measure(network, expert, inputs, labels if settings.labels else None, rehearsal, kept)

    manifolds = [inputs, *rehearsal.inputs]

    def settle(w: Tensor) -> Tensor:
        return with_statistics(w, start, expert, network, manifolds, settings)

    limits = None if settings.budget is None else DriftConstraints(kept, settings.budget)
    line, jumped, first = best_on_line(start, expert, measure, settle, limits)
    reached = metric.inner(first - start, first - start) ** 0.5

    per_step = min(settings.batch, max(len(inputs) // _STEPS, _LEAST_BATCH), len(inputs))
    steps = max(1, round(settings.epochs * len(inputs) / per_step))
    marks = {round(steps * i / _MARKS) for i in range(1, _MARKS + 1)}
    targets = None if settings.labels else answers(network, expert, inputs)
    notes, walked = [], 0
    for attempt in range(_RETRIES + 1):
        rate = settings.learning_rate * 0.5**attempt
        new: KLToTeacher | CrossEntropy
        if targets is None:
            assert labels is not None
            new = CrossEntropy(
                network, Split(inputs, labels.to(network.device)), per_step, settings.seed
            )
        else:
            new = KLToTeacher(network, targets, inputs, per_step, settings.seed)
        budgets = None if settings.budget is None else DriftConstraints(kept, settings.budget)
        # FunctionWalkOptions's rate is that of directions nothing is kept in, so is ours.
        walk = FunctionWalkOptions(settings.damping, steps, rate, settings.momentum, per_step)
        points = walk_toward_function(
            first, lambda _: metric, [RehearsalObjective(new, rehearsal)], walk, budgets
        )
        path, weights, length = [measure(0, reached, first)], [first], reached
        try:
            for step, point in enumerate(points, start=1):
                walked += 1
                length += point.predicted**0.5
                if step in marks:
                    weights.append(settle(point.weights))
                    path.append(measure(step, length, weights[-1]))
            break
        except NumericalError:
            if attempt == _RETRIES:
                raise
            notes.append(f"the walk diverged at a learning rate of {rate:g} and was walked at half")
    # Statistics that were measured again may have led a point out of its budget.
    allowed = [i for i, w in enumerate(weights) if limits is None or not i or limits.within(w)]
    best = min(allowed, key=lambda i: path[i].value)
    w = weights[best]
    batch = per_step + (settings.rehearsal if rehearsal.count else 0)
    drawn = sum(len(r.targets) - batch_size(r.examples) for r in memory)
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
        step_bytes=step_bytes,
        used={
            "inputs": len(inputs),
            "labels": len(inputs) if settings.labels else 0,
            "pseudo_inputs": drawn,
            "kept_inputs": sum(batch_size(r.examples) for r in memory),
        },
        passes=walked * batch / len(inputs),
        notes=notes,
    )
    return w, report


def _metric(
    start: Tensor,  # (n,)
    inputs: Inputs,
    kept: Sequence[QuadraticConstraint],
    names: Sequence[str],
    network: Network,
    settings: ContinualOptions,
) -> Metric:
    if settings.metric == "euclidean":
        return EuclideanMetric()
    if settings.manifold == "new":
        sample = inputs.sample(settings.sketch_inputs, settings.seed)
        batches = sample.batches(_BATCH)
        measured = estimate_kronecker(network, start, batches, settings.output, settings.seed)
        return measured.truncate(settings.damping)
    chosen = names
    if isinstance(settings.manifold, int) and settings.manifold < len(names):
        chosen = [names[settings.manifold]]  # until there is that task, all of them
    metrics = [k.metric for k in kept if k.name in chosen]
    if not metrics:  # nothing is to be kept by it, or its sketch was merged into another
        return EuclideanMetric()
    return combine(metrics).truncate(settings.damping)


def _step_bytes(
    metric: Metric,
    w: Tensor,  # (n,)
    rows: int,
) -> int:
    """Bytes that a step holds: the metric, and vectors as long as the weights."""
    vectors = 4 + 3 * rows  # weights, gradient, momentum, step; rows and their solutions
    return metric.nbytes + vectors * w.nbytes
