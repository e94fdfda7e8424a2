"""What a network is worth beside the one it came from, and beside the same goal at one blow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.evaluation.accuracy import accuracy
from geomerge.metrics import EuclideanMetric, Metric
from geomerge.paths.path import WeightPath
from geomerge.pruning.goals import stages_of
from geomerge.pruning.masks import prunable, sparsity, zeros
from geomerge.pruning.problem import Cost, Subject
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.walks import pull, with_zeros

__all__ = [
    "PruneCurvePoint",
    "PruneRow",
    "compared",
    "curve_of",
    "row_of",
]

_PULLED = 2_000_000  # weights of a network whose steps in the whole metric take no minutes


@dataclass(frozen=True)
class PruneRow:
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
class PruneCurvePoint:
    """A stored point of the path.

    Attributes:
        t: Share of the path's length.
        zeros: Share of the prunable weights that is zero.
        removed: Units that are gone.
        drift: Mean functional change from the start, on held-out inputs.
        agreement: As in :class:`PruneRow`.
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


def row_of(
    subject: Subject,
    name: str,
    w: Tensor,  # (n,)
) -> PruneRow:
    """Measure a network; nothing here is used for a choice."""
    whole = subject.selection.compare(w)
    return PruneRow(
        name,
        sparsity(w, prunable(subject.network)),
        subject.held_out.compare(w).drift,
        whole.agreement,
        whole.accuracy,
        accuracy(subject.network, w, subject.task.test),
    )


def curve_of(subject: Subject, path: WeightPath) -> list[PruneCurvePoint]:
    """Measure the stored points of a path on some of the selection split."""
    network, held_out = subject.network, subject.held_out
    places = prunable(network)
    found = []
    for t in path.ts:
        w = path.at(t).to(subject.w.device)
        gone = removed_units(network, w, subject.units) if subject.units else {}
        naive = torch.where(zeros(w, places), 0.0, subject.w)
        now = held_out.compare(w)
        found.append(
            PruneCurvePoint(
                t,
                sparsity(w, places),
                sum(map(len, gone.values())),
                now.drift,
                now.agreement,
                now.accuracy,
                held_out.compare(naive).accuracy,
            )
        )
    return found


def compared(subject: Subject) -> list[PruneRow]:
    """Return the network as it came, and the same goal reached at one blow."""
    options = replace(subject.options, choice="greedy", budget=None, stages=1)
    once = replace(subject, options=options, cost=Cost())
    magnitude = replace(options, saliency="magnitude", choice="magnitude")
    small = replace(subject, options=magnitude, cost=Cost())
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
    *_, last = pull(subject, subject.w, lambda w: metric)
    return last.weights


def _at_once(subject: Subject, metric: Metric) -> Tensor:  # (n,)
    stage = with_zeros(subject, subject.w, stages_of(subject)[-1])
    wanted = stage(subject.w, metric)
    return subject.settle(torch.where(wanted.free, subject.w, wanted.target))
