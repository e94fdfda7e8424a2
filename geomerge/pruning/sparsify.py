"""Sparsify one network: walks to the plane, the best of them, and what it compares with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from geomerge.evaluation.search import shortest_of_best
from geomerge.io.checkpoint import Checkpoint
from geomerge.monitor.progress import Progress
from geomerge.notebook import Curve, card, drawing, table
from geomerge.paths.path import WeightPath
from geomerge.pruning.goals import stages_of
from geomerge.pruning.measure import PruneCurvePoint, PruneRow, compared, curve_of, row_of
from geomerge.pruning.options import SparsifyOptions
from geomerge.pruning.problem import Subject, prepare_subject
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.walks import START, PruneWalk, finish_with_labels, walk_stages
from geomerge.walks.state import StateFile

__all__ = [
    "Sparsified",
    "sparse_checkpoint",
    "sparsify",
    "store_walk",
]


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
    walks: list[PruneWalk]
    chosen: PruneWalk
    path: WeightPath
    removed: Mapping[str, list[int]]
    rows: list[PruneRow]
    curve: list[PruneCurvePoint]

    @property
    def checkpoint(self) -> Checkpoint:
        """The sparse network."""
        return sparse_checkpoint(self.subject, self.chosen.weights)

    def __repr__(self) -> str:
        last = self.rows[-1]
        return (
            f"<Sparsified on {self.subject.task.name}: {last.zeros:.1%} of the prunable weights "
            f"are zero, {100 * last.test:.2f} % on test, {100 * self.rows[0].test:.2f} % before>"
        )

    def _repr_html_(self) -> str:
        rows = [
            [
                row.name, f"{row.zeros:.1%}", f"{100 * row.select:.2f}", f"{100 * row.test:.2f}",
                f"{row.agreement:.1%}", f"{row.drift:.3g}",
            ]
            for row in self.rows
        ]  # fmt: skip
        along = self.curve
        curves = [
            Curve("on the path (held out)", [(point.zeros, point.select) for point in along]),
            Curve("the same masks, just cut out", [(point.zeros, point.naive) for point in along]),
        ]
        headings = ("network", "zeros", "selection (%)", "test (%)", "same answers", "drift")
        gone = sum(map(len, self.removed.values()))
        return card(
            f"Sparsified on {self.subject.task.name}" + (f", {gone} units removed" if gone else ""),
            table(headings, rows),
            drawing(curves, "share of the prunable weights that is zero", "accuracy"),
        )


def sparsify(
    checkpoint: Checkpoint,
    options: SparsifyOptions,
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
    work: Path | None = None,
) -> Sparsified:
    """Bring a network to a sparse plane, keeping its function on a manifold.

    Args:
        checkpoint: The network.
        options: How.
        folder: Where paths are stored: ``path`` and, of further walks, ``path-2``, ...
        on_progress: Called after each point of a walk.
        work: Where walks keep what they need to go on, on the disk of ``folder``: the same call
            with what an interrupted one left there goes on, and gives the same bits. None keeps
            nothing.

    Returns:
        The sparse network and how it was reached.

    Raises:
        GeomergeError: If inputs, options or data are wrong.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.pruning.options import SparsifyOptions
        >>> from geomerge.pruning.sparsify import sparsify
        >>> module = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> network = gm.Checkpoint(module.state_dict(), {"task": "digits"})
        >>> options = SparsifyOptions(sparsity=0.5, stages=1, steps=2, inputs=200, points=8)
        >>> found = sparsify(network, options, Path(tempfile.mkdtemp()))
        >>> [row.name for row in found.rows][0], found.rows[-1].name
        ('dense', 'walk')
        >>> round(found.rows[-1].zeros, 2)
        0.5
    """
    goal = options.goal()
    subject = prepare_subject(checkpoint, options)
    place = folder / "walks" if work is None else work
    walks = []
    for number in range(options.paths):
        own = place / f"walk-{number + 1}"
        kept = StateFile(None if work is None else own / "state", options.device)
        stages = stages_of(subject, kept.state.part("stages"))
        walked = walk_stages(
            subject, subject.w, stages, own, f"walk {number + 1}", number, on_progress, kept
        )
        if options.labels:
            last = StateFile(None if work is None else own / "labels" / "state", options.device)
            walked = finish_with_labels(subject, walked, last)
        walks.append(walked)
    chosen = shortest_of_best(walks, lambda walk: walk.agreement, lambda walk: walk.leg.length)
    others = [walk for walk in walks if walk is not chosen]
    path = store_walk(subject, chosen, folder / "path", subject.w)
    for number, walk in enumerate(others, 2):
        store_walk(subject, walk, folder / f"path-{number}", subject.w)
    if work is None:
        shutil.rmtree(place)
    structured = goal in ("remove", "flops", "params")
    removed = removed_units(subject.network, chosen.weights, subject.units) if structured else {}
    curve = curve_of(subject, path)
    name = "walk, then labels" if options.labels else "walk"
    rows = [*compared(subject), row_of(subject, name, chosen.weights)]
    return Sparsified(subject, walks, chosen, path, removed, rows, curve)


def sparse_checkpoint(
    subject: Subject,
    w: Tensor,  # (n,)
) -> Checkpoint:
    """Return weights as a checkpoint that knows its task, without what described the dense one."""
    meta = subject.checkpoint.meta
    known = ("architecture", "task", "normalisation", "tasks", "head", "training")
    kept = {key: meta[key] for key in known if key in meta}
    if "tasks" not in kept:
        kept.setdefault("task", subject.task.name)
        kept.setdefault("normalisation", subject.task.normalisation.to_json())
    if subject.options.arch is not None:
        kept["architecture"] = subject.options.arch
    return Checkpoint(subject.network.state_dict(w), kept)


def store_walk(
    subject: Subject,
    walk: PruneWalk,
    folder: Path,
    start: Tensor,  # (n,)
) -> WeightPath:
    """Store a walk as a path from where it started, at t = 0, to where it arrived.

    Args:
        subject: The network.
        walk: The walk.
        folder: The path's folder; what an interrupted call had stored there goes.
        start: Where the walk started.
    """
    WeightPath.clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leg = walk.leg.copied(folder)
    first, last = (sparse_checkpoint(subject, w) for w in (start, walk.weights))
    arrived, points = leg.marks[-1][0], subject.options.points
    WeightPath.write(
        folder, (START, first), ("end", last), [leg], (leg, arrived), points, last.meta
    )
    return WeightPath(folder, subject.network.device)
