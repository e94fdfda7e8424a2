"""The rows that stand beside every merge: networks, line, Euclidean walk, joint training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import search
from geomerge.merging.candidates import best_candidate, pick_candidates, walk_stage
from geomerge.merging.joint import NotTrainableError, joint_samples, train_jointly
from geomerge.merging.merge import Merge
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan, plan_merge
from geomerge.merging.scoring import Scorer, select_accuracies
from geomerge.merging.sides import Sides
from geomerge.merging.walks import Walker
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
        row: The name of its row.
        title: Put before the walks' names.
        folder: Where it keeps what it needs to go on, below the place of all.
        plan: What is walked.
        options: How.
    """

    row: str
    title: str
    folder: str
    plan: Plan
    options: MergeOptions


def walks_beside(plan: Plan, sides: Sides, options: MergeOptions) -> Iterator[WalkBeside]:
    """Yield the walks that stand beside a merge: in the Euclidean metric, and not learned.

    Args:
        plan: The merge's.
        sides: Its networks.
        options: Its options.
    """
    if plan.preset != "paper" and options.metric != "euclidean":
        plain = replace(
            options, metric="euclidean", damping=None, learning_rate=None, learn=None, budget=()
        )
        stages = tuple(replace(stage, candidates=(0.0,)) for stage in plan.stages)
        name = "Euclidean walk"
        yield WalkBeside(name, f"{name} ", "euclidean", replace(plan, stages=stages), plain)
    if options.learn is not None:  # did it pay, against the dampings that it replaces?
        fixed = replace(options, learn=None, damping=None)
        other = plan_merge(sides, fixed)
        tried = ", ".join(f"{mu:g}" for mu in other.stages[0].candidates)
        yield WalkBeside(f"fixed damping ({tried})", "not learned, ", "fixed", other, fixed)


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
    for beside in walks_beside(merged.plan, sides, options):
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
    """Walk by another plan with other options, and return the point picked."""
    sides, plan, options = merged.sides, beside.plan, beside.options
    walker = Walker(sides, options)
    w = plan.begin(sides)
    with TemporaryDirectory() as folder:
        for number, stage in enumerate(plan.stages):
            walked = walk_stage(
                sides, plan, stage, w, walker, options,
                (work or Path(folder)) / str(number), on_progress, beside.title, work is not None,
            )  # fmt: skip
            chosen = best_candidate(pick_candidates(walked, merged.rule), merged.rule)
            w = sides.settled(chosen.leg.weights(chosen.step))
    return w


def _row(
    merged: Merge,
    name: str,
    w: Tensor,  # (n,)
) -> ResultRow:
    sides = merged.sides.all
    test = {s.name: accuracy(s.network, w, s.task.test) if s.task else None for s in sides}
    return ResultRow(name, select_accuracies(sides, w), test)
