"""A plan -> walks, one per candidate, and the best point of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from geomerge.crossover import PickRule, Score, accuracy, search
from geomerge.merging.monitor import Monitor, Progress
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walks import Probe, Walker
from geomerge.metric import EuclideanMetric, KroneckerMetric, Metric, make_sketch
from geomerge.path import Leg, record_leg

__all__ = [
    "Candidate",
    "Scorer",
    "Walked",
    "pick_candidates",
    "probe_of",
    "shortest_of_best",
    "toward_b",
    "walk_candidates",
]

WITHIN = 0.005  # of candidates this near to the best score the shortest path wins


@dataclass
class Candidate:
    """One walked candidate.

    Attributes:
        damping: Its mu (paper's preset: the least mu).
        leg: Its points.
        step: The picked point.
        score: What is known of that point.
        value: What the pick rule makes of it.
        length: Length of its walk up to the pick, on the same inputs for all candidates.
    """

    damping: float
    leg: Leg
    step: int
    score: Score
    value: float
    length: float


@dataclass(frozen=True)
class Walked:
    """The candidates' walks, not yet picked from.

    Attributes:
        sides: Both networks.
        plan: What was walked.
        walker: That walked.
        metric: The metric of the kept function.
        output: What it measures.
        legs: One per candidate.
    """

    sides: Sides
    plan: Plan
    walker: Walker
    metric: Metric
    output: str
    legs: list[Leg]


def walk_candidates(
    sides: Sides,
    plan: Plan,
    options: MergeOptions,
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> Walked:
    """Walk once for every candidate of a plan.

    Args:
        sides: Both networks.
        plan: The candidates.
        options: Settings of the walks.
        folder: Where their points go, a folder each.
        on_progress: Called after each step.
    """
    walker = Walker(sides.network, plan.goal if plan.preset == "sketch" else plan.start, options)
    metric = _kept_metric(sides, plan, options)
    monitor = Monitor(sides, on_progress)
    legs = []
    for damping in plan.candidates:
        if plan.preset == "sketch":
            sharp = metric.sharpened(damping) if isinstance(metric, KroneckerMetric) else metric
            walk, steps = walker.learn(plan.start, sharp, damping)
        else:
            walk, steps = walker.toward(plan.goal.w, damping)
        legs.append(
            record_leg(
                folder / f"candidate-{damping:g}",
                plan.start.name,
                plan.start.w,
                monitor.watch(walk, f"from {plan.start.name}, damping {damping:g}", steps),
                options.points,
                probe_of(sides, plan.start, options.output),
            )
        )
    return Walked(sides, plan, walker, metric, options.output, legs)


def pick_candidates(walked: Walked, rule: PickRule) -> list[Candidate]:
    """Pick a point of every candidate by a rule, on the selection splits."""
    scorer = Scorer(walked.sides, walked.plan, walked.metric, walked.output)
    pairs = zip(walked.legs, walked.plan.candidates, strict=True)
    return [_pick(leg, damping, scorer, rule) for leg, damping in pairs]


def shortest_of_best(candidates: list[Candidate]) -> Candidate:
    """Return the shortest of the candidates within half a point of the best value."""
    best = max(c.value for c in candidates)
    return min((c for c in candidates if c.value >= best - WITHIN), key=lambda c: c.length)


class Scorer:
    """Measures points for the pick: on selection splits, or by the sketch where there is none.

    Args:
        sides: Both networks.
        plan: Who is kept.
        metric: The kept side's metric; in the sketch preset drifts without data come from it.
        output: What drifts are measured in.
    """

    def __init__(self, sides: Sides, plan: Plan, metric: Metric, output: str) -> None:
        self._sides, self._plan, self._metric = sides, plan, metric
        self._probes = {s.name: probe_of(sides, s, output) for s in (sides.a, sides.b)}

    def __call__(
        self,
        w: Tensor,  # (n,)
        toward_b: float,
    ) -> Score:
        """Return all that can be measured of a point, ``toward_b`` its way from 0 to 1."""
        network, a, b = self._sides.network, self._sides.a, self._sides.b
        found = {s.name: accuracy(network, w, s.task.select) if s.task else None for s in (a, b)}
        return Score(found["a"], found["b"], self._drift(a, w), self._drift(b, w), toward_b)

    def _drift(self, side: Side, w: Tensor) -> float | None:
        probe = self._probes[side.name]
        if probe is not None:
            return probe(side.w, w)
        if self._plan.preset == "sketch" and side is self._plan.start:
            gap = w - side.w
            return self._metric.inner(gap, gap)
        return None


def _kept_metric(sides: Sides, plan: Plan, options: MergeOptions) -> Metric:
    """Return the metric of the start side's function: its sketch, made now if it has inputs."""
    if plan.preset != "sketch" or options.metric == "euclidean":
        return EuclideanMetric()
    if plan.start.sketch is None:
        plan.start.sketched_now = True
        assert plan.start.manifold is not None
        task = plan.start.task.name if plan.start.task else plan.start.name
        plan.start.sketch = make_sketch(
            sides.network,
            plan.start.w,
            plan.start.manifold,
            task,
            output=options.output,
            seed=options.seed,
        )
    return plan.start.sketch.metric


def probe_of(sides: Sides, side: Side, output: str) -> Probe | None:
    """Return what measures changes of a side's function, on inputs that the walk may not use."""
    if side.task is not None:
        return Probe(sides.network, side.task.select.inputs, output)
    if side.manifold is not None:
        return Probe(sides.network, side.manifold, output)
    return None


def toward_b(leg: Leg, step: int) -> float:
    """Return how far a stored point of a leg lies toward b, as a share of the leg's length."""
    along = leg.length_at(step) / leg.length if leg.length else 0.0
    return along if leg.name == "a" else 1 - along


def _pick(leg: Leg, damping: float, scorer: Scorer, rule: PickRule) -> Candidate:
    steps = [step for step, _ in leg.marks]
    step, scores = search(steps, lambda s: scorer(leg.weights(s), toward_b(leg, s)), rule)
    length = leg.length_at(step)
    return Candidate(damping, leg, step, scores[step], rule.value(scores[step]), length)
