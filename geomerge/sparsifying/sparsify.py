"""Sparsify one network: walks to the plane, the best of them, and what it compares with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from geomerge.checkpoint import Checkpoint
from geomerge.crossover import accuracy
from geomerge.merging.monitor import Progress
from geomerge.metric import EuclideanMetric, Metric, functional_change
from geomerge.path import WeightPath
from geomerge.sparsifying.goals import stages_of
from geomerge.sparsifying.options import SparsifyOptions
from geomerge.sparsifying.subject import Subject, prepare_subject
from geomerge.sparsifying.walks import (
    START,
    Walked,
    finish_with_labels,
    shortest_of_best,
    walk_stages,
)
from geomerge.sparsity.masks import prunable, sparsity
from geomerge.sparsity.pull import PullWalk, walk_by_pull
from geomerge.sparsity.shrink import removed_units
from geomerge.sparsity.walk import Prescription

__all__ = [
    "CurvePoint",
    "Row",
    "Sparsified",
    "curve_of",
    "row_of",
    "sparse_checkpoint",
    "sparsify",
    "store_walk",
]

_PULLED = 2_000_000  # weights of a network whose steps in the whole metric take no minutes


@dataclass(frozen=True)
class Row:
    """A network beside the result.

    Attributes:
        name: What it is.
        zeros: Share of the prunable weights that is zero.
        drift: Mean functional change from the network as it came, on held-out inputs.
        agreement: Share of held-out inputs with the label that the network gave them before.
        select: Accuracy on the selection split, in [0, 1].
        test: Accuracy on the test split.
    """

    name: str
    zeros: float
    drift: float
    agreement: float
    select: float
    test: float


@dataclass(frozen=True)
class CurvePoint:
    """A stored point of the path.

    Attributes:
        t: Share of the path's length.
        zeros: Share of the prunable weights that is zero.
        removed: Units that are gone.
        drift: Mean functional change from the start, on held-out inputs.
        agreement: As in :class:`Row`.
        select: Accuracy on those held-out inputs.
        naive: The same for the start's weights under the point's mask, with nothing made up.
    """

    t: float
    zeros: float
    removed: int
    drift: float
    agreement: float
    select: float
    naive: float


@dataclass(frozen=True)
class Sparsified:
    """A finished sparsification.

    Attributes:
        subject: The network before.
        walks: All walks, in the order walked.
        chosen: The one that is kept.
        path: It, stored.
        removed: By layer, the units that are gone.
        rows: The result beside others.
        curve: Along the path.
    """

    subject: Subject
    walks: list[Walked]
    chosen: Walked
    path: WeightPath
    removed: Mapping[str, list[int]]
    rows: list[Row]
    curve: list[CurvePoint]

    @property
    def checkpoint(self) -> Checkpoint:
        """The sparse network."""
        return sparse_checkpoint(self.subject, self.chosen.weights)


def sparsify(
    checkpoint: Checkpoint,
    options: SparsifyOptions,
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> Sparsified:
    """Bring a network to a sparse plane, keeping its function on a manifold.

    Args:
        checkpoint: The network.
        options: How.
        folder: Where paths are stored: ``path`` and, of further walks, ``path-2``, ...
        on_progress: Called after each point of a walk.

    Returns:
        The sparse network and how it was reached.

    Raises:
        GeomergeError: If inputs, options or data are wrong.
    """
    goal = options.goal()
    subject = prepare_subject(checkpoint, options)
    walks = []
    for number in range(options.paths):
        walked = walk_stages(
            subject, subject.w, stages_of(subject), folder / f"walk-{number + 1}",
            f"walk {number + 1}", number, on_progress,
        )  # fmt: skip
        walks.append(finish_with_labels(subject, walked) if options.labels else walked)
    chosen = shortest_of_best(walks)
    others = [walk for walk in walks if walk is not chosen]
    path = store_walk(subject, chosen, folder / "path", subject.w)
    for number, walk in enumerate(others, 2):
        store_walk(subject, walk, folder / f"path-{number}", subject.w)
    structured = goal in ("remove", "flops", "params")
    removed = removed_units(subject.network, chosen.weights, subject.units) if structured else {}
    curve = curve_of(subject, path)
    name = "walk, then labels" if options.labels else "walk"
    rows = [*_compared(subject), row_of(subject, name, chosen.weights)]
    return Sparsified(subject, walks, chosen, path, removed, rows, curve)


def sparse_checkpoint(
    subject: Subject,
    w: Tensor,  # (n,)
) -> Checkpoint:
    """Return weights as a checkpoint that knows its task, without what described the dense one."""
    meta = subject.checkpoint.meta
    known = ("architecture", "task", "normalisation", "tasks", "head")
    kept = {key: meta[key] for key in known if key in meta}
    kept.setdefault("task", subject.task.name)
    if "tasks" not in kept:
        kept["normalisation"] = subject.task.normalisation.to_json()
    if subject.options.arch is not None:
        kept["architecture"] = subject.options.arch
    return Checkpoint(subject.network.state_dict(w), kept)


def row_of(
    subject: Subject,
    name: str,
    w: Tensor,  # (n,)
) -> Row:
    """Measure a network; nothing here is used for a choice."""
    network, task = subject.network, subject.task
    return Row(
        name,
        sparsity(w, prunable(network)),
        functional_change(subject.logits(subject.w), subject.logits(w), subject.options.output),
        accuracy(network, w, subject.own_labels),
        accuracy(network, w, task.select),
        accuracy(network, w, task.test),
    )


def curve_of(subject: Subject, path: WeightPath) -> list[CurvePoint]:
    """Measure the stored points of a path on some of the selection split."""
    network, places = subject.network, prunable(subject.network)
    weights = torch.zeros(network.n, dtype=torch.bool)
    for place in places.values():
        weights[place] = True
    labels, before = subject.held_out.labels, subject.logits(subject.w)
    found = []
    for t in path.ts:
        w = path.at(t).to(subject.w.device)
        gone = removed_units(network, w, subject.units) if subject.units else {}
        naive = torch.where(weights.to(w.device) & (w == 0), 0.0, subject.w)
        now = subject.logits(w)
        found.append(
            CurvePoint(
                t,
                sparsity(w, places),
                sum(map(len, gone.values())),
                functional_change(before, now, subject.options.output),
                _share(now, before.argmax(dim=1)),
                _share(now, labels),
                _share(subject.logits(naive), labels),
            )
        )
    return found


def _share(
    logits: Tensor,  # (N, m)
    labels: Tensor,  # (N,)
) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())


def _compared(subject: Subject) -> list[Row]:
    """Return the network as it came, and the same goal reached at one blow."""
    options = replace(subject.options, choice="greedy", budget=None, stages=1)
    once = replace(subject, options=options)
    small = replace(subject, options=replace(options, saliency="magnitude", choice="magnitude"))
    rows = [
        row_of(subject, "dense", subject.w),
        row_of(subject, "one-shot magnitude", _at_once(small, EuclideanMetric())),
    ]
    if subject.options.metric != "euclidean":
        metric = subject.metric_at(subject.w)
        rows.append(row_of(subject, "one-shot, second-order choice", _at_once(once, metric)))
        if subject.options.walk == "prescribed" and subject.network.n <= _PULLED:
            rows.append(row_of(subject, "soft pull, then the mask", _pulled(once, metric)))
    return rows


def _pulled(subject: Subject, metric: Metric) -> Tensor:  # (n,)
    """Return where the soft pull of arXiv 2012.09605 ends, in the metric of the start."""
    *_, last = walk_by_pull(
        subject.w,
        lambda w, metric: stages_of(subject)[-1](w, metric),
        lambda w: metric,
        PullWalk(),
        subject.settle,
    )
    return last.weights


def _at_once(subject: Subject, metric: Metric) -> Tensor:  # (n,)
    wanted: Prescription = stages_of(subject)[-1](subject.w, metric)
    return subject.settle(torch.where(wanted.free, subject.w, wanted.target))


def store_walk(
    subject: Subject,
    walk: Walked,
    folder: Path,
    start: Tensor,  # (n,)
) -> WeightPath:
    """Store a walk as a path from where it started, at t = 0, to where it arrived.

    Args:
        subject: The network.
        walk: The walk, whose points are moved.
        folder: The path's folder.
        start: Where the walk started.
    """
    folder.mkdir(parents=True)
    came_from = walk.leg.folder
    leg = walk.leg.moved(folder)
    came_from.rmdir()
    first, last = (sparse_checkpoint(subject, w) for w in (start, walk.weights))
    arrived, points = leg.marks[-1][0], subject.options.points
    WeightPath.write(
        folder, (START, first), ("end", last), [leg], (leg, arrived), points, last.meta
    )
    return WeightPath(folder, subject.network.device)
