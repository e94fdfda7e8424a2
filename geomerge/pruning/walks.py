"""Walks to a plane: recorded in a folder and scored without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from geomerge.evaluation.accuracy import accuracy
from geomerge.metrics import Metric, exact_metric
from geomerge.monitor.progress import Progress
from geomerge.paths.leg import Leg, record_leg
from geomerge.pruning.goals import stages_of
from geomerge.pruning.masks import prunable, zeros
from geomerge.pruning.problem import FEW, STEP_PASSES, Subject
from geomerge.steps import precondition
from geomerge.walks.objectives import CrossEntropy, MixupDrift, Objective, OutputDrift
from geomerge.walks.plane import PlaneWalkOptions, Prescription, Stage, walk_toward_plane
from geomerge.walks.soft_pull import PullWalkOptions, walk_by_pull
from geomerge.walks.state import StateFile, WalkState
from geomerge.walks.walk import WalkPoint

__all__ = [
    "START",
    "PruneWalk",
    "finish_with_labels",
    "pull",
    "settings_of",
    "stable_rate",
    "walk_stages",
    "with_zeros",
]

LABEL_RATE = 0.2  # of the walk's learning rate
LABEL_STEPS = 0.25  # of the walk's steps
_PULL = PlaneWalkOptions(
    PullWalkOptions.least, PullWalkOptions.steps, 0.0, 0.0, PullWalkOptions.refresh
)
START = "start"  # the end of a path where its walk starts
_SPREAD = (1.0, 1 / 3, 3.0)  # of the damping, from walk to walk


@dataclass(frozen=True)
class PruneWalk:
    """A walk that arrived.

    Attributes:
        name: Of the walk.
        leg: Its points.
        weights: Where it ends, shape (n,).
        settings: Of the steps against the drift.
        agreement: Share of held-out inputs with the label that the network gave them before.
        seed: Of the order of inputs.
    """

    name: str
    leg: Leg
    weights: Tensor
    settings: PlaneWalkOptions
    agreement: float
    seed: int


def settings_of(subject: Subject, number: int) -> PlaneWalkOptions:
    """Return the settings of a walk: what the options say, else what the network can take."""
    options, usual = subject.options, PlaneWalkOptions()
    damping = (options.damping or usual.damping) * _SPREAD[number % len(_SPREAD)]
    rate = options.learning_rate
    if rate is None:
        stable = stable_rate(subject, subject.metric_at(subject.w), damping)
        rate = min(usual.learning_rate, stable)
    return PlaneWalkOptions(damping, options.steps or usual.steps, rate, refresh=options.refresh)


def walk_stages(
    subject: Subject,
    start: Tensor,  # (n,)
    stages: list[Stage],
    folder: Path,
    name: str,
    number: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    kept: StateFile | None = None,
) -> PruneWalk:
    """Walk through stages once.

    Args:
        subject: The network.
        start: Where from.
        stages: To walk through; they remember what they took, so they serve one walk. A soft
            pull has none: it goes where the options say, chosen anew at every step.
        folder: Where points are stored.
        name: Of the walk, for who watches.
        number: Of the walk; later ones have other dampings and other orders of inputs.
        on_progress: Called after each point.
        kept: The walk's state; the stages remember in it what they took. One that was interrupted
            goes on, and costs what it would have cost.
    """
    kept = StateFile() if kept is None else kept
    pulled = subject.options.walk == "pull"
    settings = _PULL if pulled else settings_of(subject, number)
    seed = subject.options.seed + number
    metric_at = _metric_at(subject, kept.state)
    if pulled:
        walk = pull(subject, start, metric_at, kept.state)
        count = PullWalkOptions.steps + 1
    else:
        direction = _against_drift(subject, seed, kept.state)
        still = [with_zeros(subject, start, stage) for stage in stages]
        walk = walk_toward_plane(
            start, still, metric_at, direction, settings, subject.settle, subject.large, kept
        )
        count = 2 * len(stages)
    subject.cost.kept_in(kept.state.part("cost"))
    watched = _watched(subject, walk, name, count, on_progress, kept.steps)
    leg = record_leg(folder, START, start, watched, subject.options.points, subject.meter(), kept)
    return _arrived(subject, name, leg, settings, seed)


def _metric_at(subject: Subject, state: WalkState) -> Callable[[Tensor], Metric]:
    """Return what measures the metric, and counts what was measured before an interruption once."""
    before = state.tensors.get("measured")

    def at(w: Tensor) -> Metric:
        if w is not before:
            return subject.metric_at(w)
        with subject.cost.free():
            return subject.metric_at(w)

    return at


def pull(
    subject: Subject,
    start: Tensor,  # (n,)
    metric_at: Callable[[Tensor], Metric],
    state: WalkState | None = None,
) -> Iterator[WalkPoint]:
    """Walk by the soft pull of arXiv 2012.09605 to where the options say.

    Args:
        subject: The network.
        start: Where from.
        metric_at: Measures the metric at a point.
        state: Where the walk is.
    """

    def plane(w: Tensor, metric: Metric) -> Prescription:
        return stages_of(subject)[-1](w, metric)  # made anew: a stage remembers what it took

    kept = with_zeros(subject, start, plane, pulled=True)
    return walk_by_pull(start, kept, metric_at, PullWalkOptions(), subject.settle, state)


def with_zeros(
    subject: Subject,
    start: Tensor,  # (n,)
    stage: Stage,
    pulled: bool = False,
) -> Stage:
    """Return a stage in which single weights that are zero at the start stay so, too.

    Args:
        subject: The network.
        start: Where the walk starts.
        stage: What to bring where.
        pulled: Whether the walk moves weights that are not free.
    """
    zero = zeros(start, prunable(subject.network))

    def at(w: Tensor, metric: Metric) -> Prescription:
        wanted = stage(w, metric)
        # A pull moves all weights; what a plan brings back is zero at the start and not later.
        target = torch.where(zero, 0.0, wanted.target) if pulled else wanted.target
        return replace(wanted, target=target, free=wanted.free & ~zero)

    return at


def _against_drift(
    subject: Subject, seed: int, state: WalkState
) -> Callable[[Tensor], tuple[float, Tensor]]:
    """Return what gives the direction against the drift, from the walk's next batch on."""
    network, manifold, options = subject.network, subject.manifold, subject.options
    batch = min(options.batch, len(manifold))
    if subject.mix > 0:
        mixed = MixupDrift(network, subject.w, manifold, options.output, batch, seed, subject.mix)
        return _counted(subject, mixed, (STEP_PASSES + 1) * batch, state)
    plain = OutputDrift(network, subject.outputs, manifold, options.output, batch, seed)
    return _counted(subject, plain, STEP_PASSES * batch, state)


def _counted(
    subject: Subject, direction: Objective, passes: int, state: WalkState
) -> Callable[[Tensor], tuple[float, Tensor]]:
    direction.skip(state.values.get("batches", 0))

    def counted(w: Tensor) -> tuple[float, Tensor]:
        subject.cost.add(passes)
        return direction(w)

    return counted


def finish_with_labels(
    subject: Subject, walked: PruneWalk, kept: StateFile | None = None
) -> PruneWalk:
    """Go on from where a walk ended toward the labels, on the same plane.

    Args:
        subject: The network.
        walked: The walk, whose leg grows.
        kept: The state of this last leg.
    """
    kept = StateFile() if kept is None else kept
    settings = replace(
        walked.settings,
        learning_rate=LABEL_RATE * walked.settings.learning_rate,
        steps=max(1, round(LABEL_STEPS * walked.settings.steps)),
    )
    train = subject.train
    labels = CrossEntropy(subject.network, train, subject.options.batch, walked.seed)
    batch = min(subject.options.batch, len(train.labels))
    direction = _counted(subject, labels, STEP_PASSES * batch, kept.state)
    free = (walked.weights != 0) & subject.network.trained

    def stay(w: Tensor, metric: Metric) -> Prescription:
        return Prescription(w, free, 0.0)

    walk = walk_toward_plane(
        walked.weights, [stay], _metric_at(subject, kept.state), direction, settings,
        subject.settle, math.log(subject.task.classes), kept,
    )  # fmt: skip
    subject.cost.kept_in(kept.state.part("cost"))
    folder = walked.leg.folder / "labels"
    leg = record_leg(folder, "labels", walked.weights, walk, 8, subject.meter(), kept)
    walked.leg.extend(leg)
    return _arrived(subject, walked.name, walked.leg, walked.settings, walked.seed)


def _arrived(
    subject: Subject, name: str, leg: Leg, settings: PlaneWalkOptions, seed: int
) -> PruneWalk:
    w = leg.weights(leg.marks[-1][0])
    agreement = accuracy(subject.network, w, subject.own_labels)
    return PruneWalk(name, leg, w, settings, agreement, seed)


def _watched(
    subject: Subject,
    walk: Iterator[WalkPoint],
    title: str,
    count: int,
    on_progress: Callable[[Progress], None] | None,
    taken: int,
) -> Iterator[WalkPoint]:
    few = subject.task.select.first(FEW)
    for k, point in enumerate(walk, taken + 1):
        if on_progress is not None:
            found = {
                subject.task.name: accuracy(subject.network, point.weights, few),
                "as dense": accuracy(subject.network, point.weights, subject.own_few),
            }
            on_progress(Progress(title, k, count, found))
        yield point


_INPUTS = 128
_BATCH = 32
_PRODUCTS = 8  # the largest eigenvalue is needed to some percent
_PASSES = 5  # of a product with G, in forward passes
_SHARE = 1.0  # of 1 / eigenvalue; 3.8 is the limit without noise


def stable_rate(
    subject: Subject,
    metric: Metric,
    damping: float,
) -> float:
    """Return a learning rate at which the drift falls.

    Args:
        subject: The network; its start counts.
        metric: The metric there.
        damping: mu.
    """
    metric = metric.truncate(damping)
    inputs = subject.manifold.sample(_INPUTS, subject.options.seed)
    exact = exact_metric(subject.network, subject.w, inputs.batches(_BATCH), subject.options.output)
    generator = torch.Generator().manual_seed(subject.options.seed)
    v = torch.randn(subject.network.n, generator=generator).to(subject.w)
    v[subject.network.n_parameters :] = 0
    largest = 0.0
    for _ in range(_PRODUCTS):
        u = precondition(metric, exact.mv(v), damping)
        largest = float(u.norm() / v.norm())
        v = u / u.norm()
    subject.cost.add(_PRODUCTS * _PASSES * len(inputs))
    return _SHARE / largest if largest > 0 else float("inf")
