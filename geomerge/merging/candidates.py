"""A stage of a plan -> walks, one per candidate, and the best point of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.evaluation.pick import PickRule, Score, search, shortest_of_best
from geomerge.merging.keeping import kept_metric, stage_budgets
from geomerge.merging.monitor import Monitor
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan, Stage
from geomerge.merging.probe import Probe, probe_of
from geomerge.merging.scoring import Scorer
from geomerge.merging.sides import Sides
from geomerge.merging.walks import Walk, Walker
from geomerge.metrics import Metric
from geomerge.monitor.progress import Progress
from geomerge.paths.leg import Leg, StepRecord, record_leg
from geomerge.walks.constraints import Constraints
from geomerge.walks.state import StateFile, WalkState

__all__ = [
    "Candidate",
    "WalkedStage",
    "best_candidate",
    "candidate_walk",
    "pick_candidates",
    "stage_probe",
    "walk_stage",
]

_OVER = 1e6  # what breaking a budget takes off a point's value
_RETRIES = 4  # of a walk that diverges, each at half the learning rate


@dataclass
class Candidate:
    """One walked candidate.

    Attributes:
        damping: Its mu (paper's preset: the least mu; learned: the first).
        leg: Its points.
        step: The picked point.
        score: What is known of that point.
        seen: The same of every point that the pick looked at, by step.
        value: What the pick rule makes of it.
        length: Length of its walk up to the pick, on the same inputs for all candidates.
        budgets: The budgets that it kept; None without any.
        steps: All steps of its walk, those after the pick too.
    """

    damping: float
    leg: Leg
    step: int
    score: Score
    seen: dict[int, Score]
    value: float
    length: float
    budgets: Constraints | None
    steps: list[StepRecord]


@dataclass(frozen=True)
class WalkedStage:
    """The candidates' walks of one stage, not yet picked from.

    Attributes:
        sides: All networks.
        stage: What was walked.
        output: What the metric measures.
        legs: One per candidate.
        budgets: Of each candidate.
        diagonal: Weights of which the metric knows only the diagonal.
    """

    sides: Sides
    stage: Stage
    output: str
    legs: list[Leg]
    budgets: list[Constraints | None]
    diagonal: tuple[str, ...]


def stage_probe(stage: Stage, output: str) -> Probe | None:
    """Return what measures the steps of a stage: where it keeps one function, and has inputs."""
    return probe_of(stage.kept[0], output) if len(stage.kept) == 1 else None


def candidate_walk(
    plan: Plan,
    stage: Stage,
    start: Tensor,  # (n,)
    metric: Metric | None,
    measure: Probe | None,
    walker: Walker,
    damping: float,
    state: WalkState,
    rate: float,
    budgets: Constraints | None,
) -> Walk:
    """Make the walk of one candidate of a stage.

    Args:
        plan: The plan.
        stage: Its stage.
        start: Where the walk starts.
        metric: What it keeps, measured before; None measures as the walk goes.
        measure: Measures its steps.
        walker: Makes it.
        damping: Of the candidate.
        state: Where the walk is.
        rate: Share of the learning rate.
        budgets: What may not get worse.
    """
    if metric is not None:
        # Without inputs lengths are the metric's, and must be one metric's for all.
        used = metric if measure is None else metric.truncate(damping)
        (learned,) = stage.learned
        return walker.learn(start, used, learned, damping, state, rate, budgets)
    if plan.preset == "joint":
        return walker.learn_all(start, damping, state, rate, budgets)
    return walker.toward(stage.kept[0], plan.goal.w, damping, state, budgets)


def walk_stage(
    sides: Sides,
    plan: Plan,
    stage: Stage,
    start: Tensor,  # (n,)
    walker: Walker,
    options: MergeOptions,
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
    title: str = "",
    resumable: bool = False,
) -> WalkedStage:
    """Walk once for every candidate of a stage.

    Args:
        sides: All networks.
        plan: The plan.
        stage: Its stage.
        start: Where the walks start.
        walker: Makes them.
        options: Settings of the walks.
        folder: Where their points go, a folder each.
        resumable: Whether what the walks need to go on is kept there.
        on_progress: Called after each step.
        title: Put before the walks' names.
    """
    metric = None
    if plan.preset == "sketch":
        metric = kept_metric(walker, stage, start, options)
    monitor = Monitor(sides, on_progress)
    measure = stage_probe(stage, options.output)
    name = plan.start.name if plan.start else "middle"
    legs, all_budgets = [], []
    for damping in stage.candidates:
        for attempt in range(_RETRIES + 1):
            place = folder / f"candidate-{damping:g}-{attempt}"
            kept = StateFile(place / "state" if resumable else None, options.device)
            state = kept.state
            budgets = stage_budgets(
                sides, plan, stage, start, metric, walker, options, state.part("budgets")
            )
            rate = 0.5**attempt
            walk, steps = candidate_walk(
                plan, stage, start, metric, measure, walker, damping, state, rate, budgets
            )
            goal = "+".join(s.name for s in stage.learned)
            label = f"{title}toward {goal}" + (f", damping {damping:g}" if damping else "")
            watched = monitor.watch(walk, label, steps, kept.steps)
            try:
                leg = record_leg(place, name, start, watched, options.points, measure, kept)
            except NumericalError:
                if attempt == _RETRIES or plan.preset == "paper":
                    raise
                sides.notes.append(
                    f"the walk {label} diverged at {rate:g} x the learning rate and was walked "
                    "again at half of that"
                )
                continue
            legs.append(leg)
            all_budgets.append(budgets)
            break
    if metric is None and not walker.diagonal:  # walked before, and nothing was measured now
        walker.metric_at(stage.kept or sides.all, 0.0)(start)
    known = walker.diagonal if metric is None else metric.diagonal_only
    return WalkedStage(sides, stage, options.output, legs, all_budgets, known)


def pick_candidates(walked: WalkedStage, rule: PickRule) -> list[Candidate]:
    """Pick a point of every candidate by a rule, on the selection splits."""
    found = zip(walked.legs, walked.stage.candidates, walked.budgets, strict=True)
    return [_pick(walked, leg, damping, budgets, rule) for leg, damping, budgets in found]


def best_candidate(candidates: list[Candidate], rule: PickRule) -> Candidate:
    """Return the shortest of the candidates within the rule's margin of the best value."""
    return shortest_of_best(candidates, lambda c: c.value, lambda c: c.length, rule.margin)


def _pick(
    walked: WalkedStage, leg: Leg, damping: float, budgets: Constraints | None, rule: PickRule
) -> Candidate:
    scorer = Scorer(walked.stage.sides, walked.output)
    if budgets is not None:  # no point beyond a budget is ever preferred to one within
        value = rule.value
        rule = replace(rule, value=lambda s: value(s) - (_OVER if s.over_budget else 0))
    steps = [step for step, _ in leg.marks]

    def measure(step: int) -> Score:
        w = walked.sides.settled(leg.weights(step))
        return replace(scorer(w), over_budget=budgets is not None and not budgets.within(w))

    step, scores = search(steps, measure, rule)
    return Candidate(
        damping,
        leg,
        step,
        scores[step],
        scores,
        rule.value(scores[step]),
        leg.length_at(step),
        budgets,
        list(leg.steps),
    )
