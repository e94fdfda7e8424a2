"""The rows that stand beside every merge: networks, line, Euclidean walk, joint training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.search import search
from geomerge.merging.joint import NotTrainableError, joint_samples, train_jointly
from geomerge.merging.merge import Merge
from geomerge.merging.options import MergeOptions
from geomerge.merging.presets.base import Preset
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.scoring import Scorer, select_accuracies
from geomerge.merging.stages import walk_plan
from geomerge.monitor.progress import Progress
from geomerge.training import straight_line

__all__ = [
    "JOINT",
    "ResultRow",
    "comparison",
    "walks_beside",
]

JOINT = "joint training"  # the name of its row


@dataclass(frozen=True)
class ResultRow:
    """One line of the table, accuracies in [0, 1] by network, None where a task is not there.

    Attributes:
        name: What it is.
        select: Accuracies on the selection splits.
        test: Accuracies on the test splits.
    """

    name: str
    select: Mapping[str, float | None]
    test: Mapping[str, float | None]


@dataclass(frozen=True)
class WalkBeside:
    """A walk for the table alone.

    Attributes:
        row: Name of its row.
        title: Text before the names of its walks.
        folder: Folder of what it needs to go on, below the place of all.
        preset: Preset that walks, with other options than the merge's.
    """

    row: str
    title: str
    folder: str
    preset: Preset


def walks_beside(preset: Preset) -> Iterator[WalkBeside]:
    """Yield the walks that stand beside a merge: in the Euclidean metric, and not learned.

    Args:
        preset: Preset of the merge.
    """
    space, options = preset.space, preset.options
    if not preset.walks_on and options.metric != "euclidean":
        plain = replace(
            options, metric="euclidean", damping=None, learning_rate=None, learn=None, budget=()
        )
        name = "Euclidean walk"
        yield WalkBeside(name, f"{name} ", "euclidean", type(preset)(space, plain))
    if options.learn is not None:  # did it pay, against the dampings that it replaces?
        fixed = type(preset)(space, replace(options, learn=None, damping=None))
        tried = ", ".join(f"{mu:g}" for mu in fixed.stages[0].candidates)
        yield WalkBeside(f"fixed damping ({tried})", "not learned, ", "fixed", fixed)


def comparison(
    merged: Merge,
    options: MergeOptions,
    on_progress: Callable[[Progress], None] | None = None,
    work: Path | None = None,
) -> list[ResultRow]:
    """Measure the merge and what stands beside it; every point is picked by the merge's own rule.

    Args:
        merged: The merge.
        options: Its options.
        on_progress: Called after each step of the Euclidean walk.
        work: Where its walks keep what they need to go on; None keeps nothing.

    Returns:
        Rows: the networks, the straight line (of two) or the mean (of more), the Euclidean walk
        (where it is not the straight line), the walk with fixed dampings where it was
        learned, joint training (where it can be; a note says why not), the crossover.
    """
    sides = merged.sides
    rows = [_row(merged, side.name, side.w) for side in sides]
    if len(sides.all) == 2:
        line = straight_line(sides.all[0].w, sides.all[1].w)
        scorer = Scorer(sides.all, options.output)
        best, _ = search(range(len(line)), lambda i: scorer(sides.settled(line[i])), merged.rule)
        rows.append(_row(merged, "straight line", sides.settled(line[best])))
    else:
        rows.append(_row(merged, "mean of the weights", sides.settled(sides.middle())))
    for beside in walks_beside(merged.preset):
        place = None if work is None else work / beside.folder
        rows.append(_row(merged, beside.row, _again(merged, beside, on_progress, place)))
    try:
        w, samples = train_jointly(sides, joint_samples(sides, options), options.seed)
        rows.append(_row(merged, JOINT, w))
        sides.notes.append(
            f"joint training is a new network that saw {samples} labelled examples, as many as a "
            "joint walk takes; the merge used none of them"
        )
    except NotTrainableError as error:
        sides.notes.append(f"joint training is not in the table: it {error}")
    except NumericalError as error:
        sides.notes.append(f"joint training is not in the table, for it diverged: {error}")
    rows.append(_row(merged, "crossover", merged.w))
    return rows


def _again(
    merged: Merge,
    beside: WalkBeside,
    on_progress: Callable[[Progress], None] | None,
    work: Path | None,
) -> Tensor:  # (n,)
    """Walk with other options, and return the point picked."""
    options = beside.preset.options
    monitor = Monitor(merged.sides, on_progress)
    with TemporaryDirectory() as folder:
        recorder = Recorder(
            work or Path(folder), monitor, options.points, work is not None, options.device,
            beside.title,
        )  # fmt: skip
        *_, last = walk_plan(beside.preset, merged.rule, recorder)
    return last.w


def _row(
    merged: Merge,
    name: str,
    w: Tensor,  # (n,)
) -> ResultRow:
    sides = merged.sides.all
    test = {s.name: accuracy(s.network, w, s.task.test) if s.task else None for s in sides}
    return ResultRow(name, select_accuracies(sides, w), test)
