"""Baselines of a merge: its networks, a line, a Euclidean walk, joint training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.evaluation.drift import LARGE, Scorer, select_scores
from geomerge.evaluation.measures import score
from geomerge.evaluation.pick import MARGIN, Score
from geomerge.evaluation.plausibility import at_chance
from geomerge.evaluation.search import search
from geomerge.merging.joint_training import NotTrainableError, joint_samples, train_jointly
from geomerge.merging.presets.base import Preset
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.result import MergeResult
from geomerge.merging.stages import walk_plan
from geomerge.metrics import METRICS
from geomerge.monitor.progress import Progress
from geomerge.training import straight_line
from geomerge.weight_space import WeightSpace

__all__ = [
    "JOINT",
    "ResultRow",
    "better_than_picked",
    "comparison",
    "trains_beside",
    "walks_beside",
]

# Names of rows.
JOINT = "joint training"
LINE = "straight line"
MEAN = "mean of the weights"
WORSE = "the crossover is worse than"  # beginning of the note


@dataclass(frozen=True)
class ResultRow:
    """Line of a merge's table: scores in [0, 1] by network, None without a task.

    Attributes:
        name: Name of the row.
        select: Scores on the selection splits.
        test: Scores on the test splits.
        hardly_trained: Whether the row is a new network that answers a task at chance.
    """

    name: str
    select: Mapping[str, float | None]
    test: Mapping[str, float | None]
    hardly_trained: bool = False

    def smallest(self, own: Mapping[str, float]) -> float | None:
        """Return the smallest score on the selection splits; None where one is not known.

        Args:
            own: Scores of experts whose shares are compared, those of language models.
        """
        known = {name: share for name, share in self.select.items() if share is not None}
        if not known or len(known) < len(self.select):
            return None
        return min(share / own.get(name, 1.0) for name, share in known.items())


@dataclass(frozen=True)
class WalkBeside:
    """Walk for the table alone.

    Attributes:
        row: Name of its row.
        title: Text before the names of its walks.
        folder: Folder of its state, below the place of all.
        preset: Preset that walks, with other options than the merge's.
    """

    row: str
    title: str
    folder: str
    preset: Preset


def trains_beside(preset: Preset) -> bool:
    """Return whether the table has walks and trainings of its own.

    They take longer than the merge itself, which is why a large network's table is without them.

    Args:
        preset: Preset of the merge.
    """
    return preset.space.network.n < LARGE


def walks_beside(preset: Preset) -> Iterator[WalkBeside]:
    """Yield the walks of the baselines: in the Euclidean metric, and with fixed dampings.

    Args:
        preset: Preset of the merge.
    """
    if not preset.walks_on and not METRICS[preset.options.measure.metric].isotropic:
        plain = preset.again(
            metric="euclidean", damping=None, learning_rate=None, learn=None, budget=None
        )
        if plain.conflict() is None:
            yield WalkBeside("Euclidean walk", "Euclidean walk ", "euclidean", plain)
    if preset.options.walk.learn is not None:  # did it pay, against the dampings that it replaces?
        fixed = preset.again(learn=None, damping=None)
        tried = ", ".join(f"{mu:g}" for mu in fixed.stages[0].candidates)
        yield WalkBeside(f"fixed damping ({tried})", "not learned, ", "fixed", fixed)


def comparison(
    merged: MergeResult,
    progress: Callable[[Progress], None] | None = None,
    work: Path | None = None,
) -> list[ResultRow]:
    """Measure a merge and its baselines, all picked by the merge's own rule.

    Args:
        merged: The merge.
        progress: Function called after each step of a walk.
        work: Folder of the states of its walks, for resuming; None stores nothing.

    Returns:
        Rows: the networks, the straight line (of two) or the mean (of more), the Euclidean walk
        (where it is not the straight line), the walk with fixed dampings where it was learned,
        joint training (else a note with the reason), the crossover. Of networks with a million
        weights or more the rows that need a walk or a training are left out, with a note.
    """
    space, prepared = merged.space, merged.preset.prepared
    rows = [_row(merged, expert.name, expert.weights) for expert in space]
    if len(space) == 2:
        line = straight_line(space.experts[0].weights, space.experts[1].weights)
        rough = prepared.rough_scorer(space.experts)
        best, _ = search(
            range(len(line)), _on_line(space, line, prepared.scorer(space.experts)), merged.rule,
            None if rough is None else _on_line(space, line, rough),
        )  # fmt: skip
        rows.append(_row(merged, LINE, space.settle(line[best])))
        share = best / (len(line) - 1)
    else:
        rows.append(_row(merged, MEAN, space.settle(space.middle())))
        share = 0.0
    if trains_beside(merged.preset):
        rows += _trained_beside(merged, progress, work)
    elif left_out := _left_out(merged.preset):
        merged.notes.append(
            f"the table is without {' and '.join(left_out)}, which for {space.network.n:,} weights "
            "would take longer than the merge"
        )
    rows.append(_row(merged, "crossover", merged.w))
    better = better_than_picked(merged, rows, share)
    if better is not None:
        merged.notes.insert(0, better)
    return rows


def _left_out(preset: Preset) -> list[str]:
    """Return the rows of a smaller network's table that need a walk or a training."""
    rows = [beside.row for beside in walks_beside(preset)]
    known = all(expert.task is not None for expert in preset.space)
    return [*rows, JOINT] if known and preset.space.head == "shared" else rows


def _trained_beside(
    merged: MergeResult,
    progress: Callable[[Progress], None] | None,
    work: Path | None,
) -> list[ResultRow]:
    """Return the rows that need a walk or a training."""
    space, options = merged.space, merged.preset.prepared.options
    seed, steps = options.machine.seed, options.walk.steps
    rows = []
    for beside in walks_beside(merged.preset):
        place = None if work is None else work / beside.folder
        rows.append(_row(merged, beside.row, _walked(merged, beside, progress, place)))
    try:
        w, samples = train_jointly(space, joint_samples(space, steps), seed)
        rows.append(_reference(merged, w))
        merged.notes.append(
            f"joint training is a new network that saw {samples} labelled examples, as many as a "
            "joint walk takes; the merge used none of them"
        )
    except NotTrainableError as error:
        merged.notes.append(f"joint training is not in the table: it {error}")
    except NumericalError as error:
        merged.notes.append(f"joint training is not in the table, for it diverged: {error}")
    return rows


def _on_line(space: WeightSpace, line: Sequence[Tensor], scorer: Scorer) -> Callable[[int], Score]:
    """Return the function of a line point's number that returns its score."""
    measure = scorer.on_line(line[0], line[-1])
    return lambda i: measure(i / (len(line) - 1), space.settle(line[i]))


def better_than_picked(merged: MergeResult, rows: Sequence[ResultRow], share: float) -> str | None:
    """Return the baseline whose worst accuracy is better than the picked point's, if there is one.

    Args:
        merged: The merge.
        rows: Its table, the crossover last.
        share: Share of b in the best point of the straight line.

    Returns:
        A sentence that names the best of the path's own ends and the line (or mean), with the
        command for it; None where the picked point is as good as these.
    """
    first, last = (expert.name for expert in merged.space.ends)
    how = {
        first: "it is the path at t = 0",
        last: "it is the path at t = 1",
        LINE: f"it is {1 - share:.3g} a + {share:.3g} b, which a comparison of methods has as well",
        MEAN: "it is the mean of all weights",
    }
    own = {
        row.name: row.select[row.name] or 1.0
        for row in rows for e in merged.space
        if row.name == e.name and e.task is not None and e.task.measure == "loss"
    }  # fmt: skip
    picked = rows[-1].smallest(own)
    rivals = {row.name: row.smallest(own) for row in rows if row.name in how}
    known = {name: value for name, value in rivals.items() if value is not None}
    if picked is None or not known:
        return None
    best = max(known, key=lambda name: known[name])
    if known[best] <= picked + MARGIN:
        return None
    name = f"network {best}" if best in (first, last) else f"the {best}"
    of = " of the inverse of its own network's perplexity" if own else ""
    return (
        f"{WORSE} {name} alone: at its worst task {100 * picked:.1f} %{of} against "
        f"{100 * known[best]:.1f} % on the selection splits; {how[best]}, and more `steps` "
        "may do better than both"
    )


def _reference(
    merged: MergeResult,
    w: Tensor,  # (n,)
) -> ResultRow:
    """Return the row of joint training, marked where it has learned nothing of a task."""
    row = _row(merged, JOINT, w)
    lost = []
    for e in merged.space:
        share = row.select[e.name]
        if e.task is not None and share is not None and at_chance(share, e.task.select):
            lost.append(e.task.name)
    if not lost:
        return row
    merged.notes.append(
        f"joint training hardly trained: it answers {' and '.join(lost)} at chance and is no "
        "reference here; more `steps` give it more examples"
    )
    return replace(row, hardly_trained=True)


def _walked(
    merged: MergeResult,
    beside: WalkBeside,
    progress: Callable[[Progress], None] | None,
    work: Path | None,
) -> Tensor:  # (n,)
    """Walk with other options, and return the point picked."""
    monitor = Monitor(merged.space, progress)
    with TemporaryDirectory() as folder:
        points = merged.preset.prepared.points
        recorder = Recorder(work or Path(folder), monitor, points, work is not None, beside.title)
        *_, last = walk_plan(beside.preset, merged.rule, recorder)
    return last.w


def _row(
    merged: MergeResult,
    name: str,
    w: Tensor,  # (n,)
) -> ResultRow:
    experts = merged.space.experts
    test = {
        e.name: score(e.network, w, e.task.test) if e.task is not None else None for e in experts
    }
    return ResultRow(name, select_scores(experts, w), test)
