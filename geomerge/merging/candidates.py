"""A stage of a plan -> walks, one per candidate, and the best point of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from geomerge.budgets import Budgets, Kept, LossKept, SketchKept
from geomerge.crossover import PickRule, Score, accuracy, search
from geomerge.errors import NumericalError, OptionError
from geomerge.merging.monitor import Monitor, Progress
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan, Stage
from geomerge.merging.probe import probe_of
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walks import Walker
from geomerge.metric import EuclideanMetric, KroneckerMetric, Metric, combine, make_sketch
from geomerge.path import Leg, StepRecord, record_leg

__all__ = [
    "Candidate",
    "Scorer",
    "Walked",
    "pick_candidates",
    "select_accuracies",
    "shortest_of_best",
    "walk_stage",
]

_BUDGET_INPUTS = 1000
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
        value: What the pick rule makes of it.
        length: Length of its walk up to the pick, on the same inputs for all candidates.
        budgets: The budgets that it kept; None without any.
        steps: All steps of its walk, those after the pick too.
    """

    damping: float
    leg: Leg
    step: int
    score: Score
    value: float
    length: float
    budgets: Budgets | None
    steps: list[StepRecord]


@dataclass(frozen=True)
class Walked:
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
    budgets: list[Budgets | None]
    diagonal: tuple[str, ...]


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
) -> Walked:
    """Walk once for every candidate of a stage.

    Args:
        sides: All networks.
        plan: The plan.
        stage: Its stage.
        start: Where the walks start.
        walker: Makes them.
        options: Settings of the walks.
        folder: Where their points go, a folder each.
        on_progress: Called after each step.
        title: Put before the walks' names.
    """
    metric = None
    if plan.preset == "sketch":
        metric = kept_metric(walker, stage, start, options)
    monitor = Monitor(sides, on_progress)
    probes = [p for p in (probe_of(side, options.output) for side in stage.kept) if p]
    measure = probes[0] if len(stage.kept) == 1 and probes else None
    name = plan.start.name if plan.start else "middle"
    legs, all_budgets = [], []
    for damping in stage.candidates:
        for attempt in range(_RETRIES + 1):
            budgets = _budgets(sides, plan, stage, start, metric, walker, options)
            rate = 0.5**attempt
            if metric is not None:
                # Without inputs lengths are the metric's, and must be one metric's for all.
                used = metric
                if isinstance(metric, KroneckerMetric) and measure is not None:
                    used = metric.sharpened(damping)
                (learned,) = stage.learned
                walk, steps = walker.learn(start, used, learned, damping, rate, budgets)
            elif plan.preset == "joint":
                walk, steps = walker.learn_all(start, damping, rate, budgets)
            else:
                walk, steps = walker.toward(stage.kept[0], plan.goal.w, damping, budgets)
            goal = "+".join(s.name for s in stage.learned)
            label = f"{title}toward {goal}" + (f", damping {damping:g}" if damping else "")
            watched = monitor.watch(walk, label, steps)
            place = folder / f"candidate-{damping:g}-{attempt}"
            try:
                legs.append(record_leg(place, name, start, watched, options.points, measure))
            except NumericalError:
                if attempt == _RETRIES or plan.preset == "paper":
                    raise
                sides.notes.append(
                    f"the walk {label} diverged at {rate:g} x the learning rate and was walked "
                    "again at half of that"
                )
                continue
            all_budgets.append(budgets)
            break
    known = metric.rest_names if isinstance(metric, KroneckerMetric) else walker.diagonal
    return Walked(sides, stage, options.output, legs, all_budgets, known)


def pick_candidates(walked: Walked, rule: PickRule) -> list[Candidate]:
    """Pick a point of every candidate by a rule, on the selection splits."""
    found = zip(walked.legs, walked.stage.candidates, walked.budgets, strict=True)
    return [_pick(walked, leg, damping, budgets, rule) for leg, damping, budgets in found]


def shortest_of_best(candidates: list[Candidate], margin: float) -> Candidate:
    """Return the shortest of the candidates within a margin of the best value."""
    best = max(c.value for c in candidates)
    return min((c for c in candidates if c.value >= best - margin), key=lambda c: c.length)


def select_accuracies(
    sides: Sequence[Side],
    w: Tensor,  # (n,)
) -> dict[str, float | None]:
    """Return the accuracy on each side's selection split, None where a task is not there."""
    return {s.name: accuracy(s.network, w, s.task.select) if s.task else None for s in sides}


class Scorer:
    """Measures points for the pick: on selection splits, or by the sketch where there is none.

    Args:
        sides: The sides that count.
        output: What drifts are measured in.
        settled: Applied to the weights first: running statistics.
    """

    def __init__(
        self, sides: Sequence[Side], output: str, settled: Callable[[Tensor], Tensor]
    ) -> None:
        self._sides = sides
        self._probes = {s.name: probe_of(s, output) for s in sides}
        self._settled = settled

    def __call__(
        self,
        w: Tensor,  # (n,)
    ) -> Score:
        """Return all that can be measured of a point."""
        w = self._settled(w)
        gaps = {s.name: float((w - s.w).norm()) for s in self._sides}
        total = sum(gaps.values()) or 1.0
        return Score(
            select_accuracies(self._sides, w),
            {s.name: self._drift(s, w) for s in self._sides},
            {name: gap / total for name, gap in gaps.items()},
        )

    def _drift(self, side: Side, w: Tensor) -> float | None:
        probe = self._probes[side.name]
        if probe is not None:
            return probe(side.w, w)
        if side.sketch is not None:
            gap = w - side.w
            return side.sketch.metric.inner(gap, gap)
        return None


def kept_metric(
    walker: Walker,
    stage: Stage,
    start: Tensor,  # (n,)
    options: MergeOptions,
) -> Metric:
    """Return the metric of what a stage keeps: sketches where there are, else measured now."""
    if options.metric == "euclidean":
        return EuclideanMetric()
    if options.metric != "kronecker":
        blind = [s.name for s in stage.kept if s.manifold is None]
        if blind:
            raise OptionError(
                f"--metric {options.metric} needs inputs of {' and '.join(blind)}; name them with "
                "--manifold, or use --metric kronecker with its sketch"
            )
        return walker.metric_at(stage.kept, stage.candidates[0])(start)
    metrics = []
    for k, side in enumerate(stage.kept):
        # Sketches are worth something at the network that they were measured at, and along a walk
        # that kept its function; for a function learned on the way that is where it was learned.
        found = walker.sketches.get(side.name) if k else side.sketch
        if found is None:
            assert side.manifold is not None
            assert side.manifold_name is not None
            side.sketched_now = True
            found = make_sketch(
                side.network,
                start,
                side.manifold,
                side.manifold_name,
                output=options.output,
                seed=options.seed,
            )
            if k:
                walker.sketches[side.name] = found
            else:
                side.sketch = found
        metrics.append(found.metric)
    return combine(metrics)


def _budgets(
    sides: Sides,
    plan: Plan,
    stage: Stage,
    start: Tensor,  # (n,)
    metric: Metric | None,
    walker: Walker,
    options: MergeOptions,
) -> Budgets | None:
    allowed: dict[str, float] = {}
    kept: dict[str, Kept] = {}
    best: dict[str, float] = {}
    # A class that is named has its own number, whatever all classes have.
    for text, number in sorted(options.budgets().items(), key=lambda item: "*" not in item[0]):
        name, _, which = text.partition("/")
        side = sides[name]
        if side not in stage.sides:
            continue
        if side.manifold is None:
            if which or metric is None or side.sketch is None:
                raise OptionError(
                    f"--budget {text} needs inputs of {name}'s task; name it with --manifold "
                    f"{name}=TASK"
                )
            found: list[Kept] = [SketchKept(text, side.sketch.metric, side.w)]
        else:
            found = list(_losses(side, text, walker))
        for budget in found:
            kept[budget.name], allowed[budget.name] = budget, number
            learned = plan.preset != "paper" and side in stage.learned
            best[budget.name] = budget.value(start) if learned else 0.0
    return Budgets(list(kept.values()), allowed, best) if kept else None


def _losses(side: Side, text: str, walker: Walker) -> list[LossKept]:
    """Return what a budget with inputs measures: all of them, or those of one class or of each."""
    assert side.manifold is not None
    count = min(_BUDGET_INPUTS, len(side.manifold))
    x, targets = side.manifold.batch(slice(0, count)), walker.targets(side)[:count]
    name, _, which = text.partition("/")
    if not which:
        return [LossKept(text, side.network, x, targets)]
    # The network's own answer counts as the class: labels are not needed.
    answers = targets.argmax(dim=1)
    shift = side.offset
    wanted = sorted(set(answers.tolist())) if which == "*" else [int(which) + shift]
    found = []
    for k in wanted:
        chosen = answers == k
        if not bool(chosen.any()):
            raise OptionError(
                f"--budget {text} speaks of class {k - shift}, which {name} never answers; name "
                "another"
            )
        found.append(LossKept(f"{name}/{k - shift}", side.network, x[chosen], targets[chosen]))
    return found


def _pick(
    walked: Walked, leg: Leg, damping: float, budgets: Budgets | None, rule: PickRule
) -> Candidate:
    scorer = Scorer(walked.stage.sides, walked.output, walked.sides.settled)
    if budgets is not None:  # no point beyond a budget is ever preferred to one within
        value = rule.value
        rule = replace(rule, value=lambda s: value(s) - (_OVER if s.over_budget else 0))
    steps = [step for step, _ in leg.marks]

    def measure(step: int) -> Score:
        w = leg.weights(step)
        score = scorer(w)
        return (
            score
            if budgets is None
            else replace(score, over_budget=not budgets.within(walked.sides.settled(w)))
        )

    step, scores = search(steps, measure, rule)
    return Candidate(
        damping,
        leg,
        step,
        scores[step],
        rule.value(scores[step]),
        leg.length_at(step),
        budgets,
        list(leg.steps),
    )
