"""Sparsification: walks to sparse networks, choice of the best, and baselines."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geomerge.evaluation.search import shortest_of_best
from geomerge.expert import Expert
from geomerge.expert_like import ExpertLike
from geomerge.io.folders import place_of
from geomerge.loading import given_expert
from geomerge.monitor.progress import Progress
from geomerge.notebook import Curve, card, drawing, sentences, table
from geomerge.options import replace_options
from geomerge.paths.leg import points_stored
from geomerge.paths.path import WeightPath
from geomerge.processes import agree, first_text, together, wait, writes
from geomerge.pruning.goals import goal_stages
from geomerge.pruning.measure import PruneCurvePoint, PruneRow, baseline_rows, curve_of, row_of
from geomerge.pruning.options import POINTS, SparsifyOptions
from geomerge.pruning.problem import PruneProblem, prepare_problem
from geomerge.pruning.results import pruned_expert, save_result, store_walk
from geomerge.pruning.shrink import removed_units, shrink
from geomerge.pruning.walk import PruneWalk, PruneWalker, WalkPlace
from geomerge.walks.plane import Prescription, Stage
from geomerge.walks.state import StateFile

__all__ = ["SparsifyResult", "sparsify"]


@dataclass(frozen=True, eq=False)
class SparsifyResult:
    """Result of a sparsification.

    Attributes:
        expert: Sparse network.
        problem: Dense network, and inputs on which its function was preserved.
        options: Options of the sparsification.
        walks: All walks in order.
        chosen: Chosen walk.
        paths: Paths from the dense to sparse networks, that of the chosen walk first.
        removed: Removed units, by layer; empty if single weights were removed.
        rows: Measurements of the dense network, of baselines and of the sparse network.
        curve: Measurements along the path.
        notes: Assumptions and limits of the result, in sentences.
    """

    expert: Expert
    problem: PruneProblem
    options: SparsifyOptions
    walks: list[PruneWalk]
    chosen: PruneWalk
    paths: list[WeightPath]
    removed: Mapping[str, list[int]]
    rows: list[PruneRow]
    curve: list[PruneCurvePoint]
    notes: list[str]

    @property
    def dense(self) -> Expert:
        """Network before the sparsification."""
        return self.problem.expert

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracies on the test split by name of the row, in [0, 1]."""
        return {row.name: row.test for row in self.rows}

    @property
    def path(self) -> WeightPath:
        """Path of the chosen walk, from the dense to the sparse network."""
        return self.paths[0]

    def module(self) -> nn.Module:
        """Return a new, trainable module with the sparse weights."""
        return self.expert.module()

    def shrunk(self) -> nn.Module | None:
        """Return a smaller module without the removed units; None if no units were removed.

        Raises:
            OptionError: If the network's code depends on the widths of its layers.
        """
        if not self.removed:
            return None
        example = self.problem.task.select.inputs.batch(slice(0, 2))
        return shrink(self.expert.network, self.expert.weights, self.removed, example)

    def save(self, folder: str | Path) -> None:
        """Write the sparse network as ``sparse.safetensors`` and its path as ``path``.

        Args:
            folder: New or empty folder.

        Raises:
            RunError: If the folder has content or cannot be written.
        """
        save_result(folder, {"sparse": self.expert}, {"path": self.path})

    def __repr__(self) -> str:
        first, last = self.rows[0], self.rows[-1]
        return (
            f"<SparsifyResult on {self.problem.task.name}: {last.zeros:.1%} of the prunable "
            f"weights are zero, {100 * last.test:.2f} % on test, {100 * first.test:.2f} % before>"
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
            f"Sparsified on {self.problem.task.name}" + (f", {gone} units removed" if gone else ""),
            table(headings, rows),
            drawing(curves, "share of the prunable weights that is zero", "accuracy"),
            sentences(self.notes),
        )


def sparsify(
    expert: ExpertLike,
    options: SparsifyOptions | None = None,
    *,
    folder: str | Path | None = None,
    work: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> SparsifyResult:
    """Walk to a sparse network that preserves the function of a dense one on its inputs.

    Args:
        expert: Dense network with its task: an expert, a module or the path of a file.
        options: Options; None takes the defaults.
        folder: Folder for the paths: ``path`` and, for further walks, ``path-2``, ... None takes a
            temporary folder that is removed with the path.
        work: Folder for the state of unfinished walks, on the disk of ``folder``. The same call
            after an interruption is resumed from it with a bit-identical result. None stores no
            state.
        progress: Function called after each point of a walk.
        changes: Options by name, such as ``sparsity=0.9``; for a module or file also its data,
            fields of :class:`~geomerge.expert_options.ExpertOptions`: ``arch``, ``inputs`` (a task
            or its name; a number is the option ``inputs``), ....

    Returns:
        Result with the sparse network and its path.

    Raises:
        GeomergeError: If inputs, options or data are invalid.

    Example:
        >>> from torch import nn
        >>> import geomerge as gm
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> dense = gm.Expert.from_module(module, gm.load_task("digits"))
        >>> result = gm.sparsify(dense, sparsity=0.5, stages=1, steps=2, inputs=200, points=8)
        >>> result.rows[0].name, result.rows[-1].name
        ('dense', 'walk')
        >>> round(result.rows[-1].zeros, 2)
        0.5
        >>> result.module() is result.module()  # a new module each time
        False
    """
    expert = given_expert(expert, changes)
    options = replace_options(options or SparsifyOptions(), **changes)
    with together():
        progress = progress if writes() else None
        return _sparsified(expert, options, folder, None if work is None else Path(work), progress)


def _sparsified(
    expert: ExpertLike,
    options: SparsifyOptions,
    folder: str | Path | None,
    work: Path | None,
    progress: Callable[[Progress], None] | None,
) -> SparsifyResult:
    structured = options.goal.removes_units  # raises for a missing goal before any work
    problem = prepare_problem(expert, options.function, options.seed)
    agree("networks or options", f"{options}", [problem.weights])
    place, temporary = place_of(folder)
    place = Path(first_text(str(place)))
    points = points_stored(options.points, POINTS, problem.network.n)
    walker = PruneWalker(problem, options.walking, points, progress)
    walks = _walks(walker, options, place / _WALKS if work is None else work, work is not None)
    chosen = shortest_of_best(walks, lambda walk: walk.agreement, lambda walk: walk.leg.length)
    others = [walk for walk in walks if walk is not chosen]
    names = ["path", *(f"path-{k}" for k in range(2, len(walks) + 1))]
    paths = [
        store_walk(problem, walk, place / name, problem.weights, points)
        for walk, name in zip([chosen, *others], names, strict=True)
    ]
    for path in paths:
        path.keeper = temporary
    wait()
    if work is None and writes():
        shutil.rmtree(place / _WALKS)
    gone = removed_units(problem.network, chosen.weights, problem.units) if structured else {}
    curve = curve_of(problem, paths[0])
    name = "walk, then labels" if options.labels else "walk"
    baselines = baseline_rows(problem, options.goal, options.ranking, not options.pulls)
    sparse = pruned_expert(problem, chosen.weights)
    return SparsifyResult(
        sparse, problem, options, walks, chosen, paths, gone,
        [*baselines, row_of(problem, name, sparse.weights)], curve, problem.notes,
    )  # fmt: skip


_WALKS = "walks"


def _walks(
    walker: PruneWalker, options: SparsifyOptions, folder: Path, resumable: bool
) -> list[PruneWalk]:
    """Return the finished walks, ``paths`` of them."""
    problem = walker.problem
    device, start = problem.network.device, problem.weights

    def stages(state: Any = None) -> list[Stage]:
        return goal_stages(problem, options.goal, options.ranking, options.walking.stages, state)

    def plane(w: Tensor, metric: Any) -> Prescription:
        return stages()[-1](w, metric)  # new stages, since they store removed weights

    walks = []
    for number in range(options.paths):
        own = folder / f"walk-{number + 1}"
        file = StateFile(own / "state" if resumable else None, device)
        place = WalkPlace(f"walk {number + 1}", own, number, file)
        first = stages(file.state.part("stages"))
        walked = (
            walker.pull(start, plane, place) if options.pulls else walker.walk(start, first, place)
        )
        if options.labels:
            last = StateFile(own / "labels" / "state" if resumable else None, device)
            walked = walker.finish_with_labels(walked, last)
        walks.append(walked)
    return walks
