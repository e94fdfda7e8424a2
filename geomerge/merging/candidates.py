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
    "select_accuracies",
    "shortest_of_best",
    "toward_b",
    "walk_candidates",
]


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
        output: What the metric measures.
        legs: One per candidate.
        diagonal: Weights of which the metric knows only the diagonal.
    """

    sides: Sides
    plan: Plan
    walker: Walker
    output: str
    legs: list[Leg]
    diagonal: tuple[str, ...]


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
    walker = Walker(sides.network, plan.walked_on, options)
    metric = _kept_metric(sides, plan, options)
    monitor = Monitor(sides, on_progress)
    probe = probe_of(sides, plan.start, options.output)
    legs = []
    for damping in plan.candidates:
        if plan.preset == "sketch":
            # Without inputs lengths are the metric's, and must be one metric's for all.
            used = metric
            if isinstance(metric, KroneckerMetric) and probe is not None:
                used = metric.sharpened(damping)
            walk, steps = walker.learn(plan.start, used, damping)
        else:
            walk, steps = walker.toward(plan.goal.w, damping)
        legs.append(
            record_leg(
                folder / f"candidate-{damping:g}",
                plan.start.name,
                plan.start.w,
                monitor.watch(walk, f"from {plan.start.name}, damping {damping:g}", steps),
                options.points,
                probe,
            )
        )
    known = metric.rest_names if isinstance(metric, KroneckerMetric) else walker.diagonal
    return Walked(sides, plan, walker, options.output, legs, known)


def pick_candidates(walked: Walked, rule: PickRule) -> list[Candidate]:
    """Pick a point of every candidate by a rule, on the selection splits."""
    scorer = Scorer(walked.sides, walked.output)
    pairs = zip(walked.legs, walked.plan.candidates, strict=True)
    return [_pick(leg, damping, scorer, rule) for leg, damping in pairs]


def shortest_of_best(candidates: list[Candidate], margin: float) -> Candidate:
    """Return the shortest of the candidates within a margin of the best value."""
    best = max(c.value for c in candidates)
    return min((c for c in candidates if c.value >= best - margin), key=lambda c: c.length)


def select_accuracies(
    sides: Sides,
    w: Tensor,  # (n,)
) -> tuple[float | None, float | None]:
    """Return the accuracies on a's and b's selection splits, None where a task is not there."""
    one, two = (
        accuracy(sides.network, w, s.task.select) if s.task else None for s in (sides.a, sides.b)
    )
    return one, two


class Scorer:
    """Measures points for the pick: on selection splits, or by the sketch where there is none.

    Args:
        sides: Both networks.
        output: What drifts are measured in.
    """

    def __init__(self, sides: Sides, output: str) -> None:
        self._sides = sides
        self._probes = {s.name: probe_of(sides, s, output) for s in (sides.a, sides.b)}

    def __call__(
        self,
        w: Tensor,  # (n,)
        toward_b: float,
    ) -> Score:
        """Return all that can be measured of a point, ``toward_b`` its way from 0 to 1."""
        a, b = self._sides.a, self._sides.b
        found = select_accuracies(self._sides, w)
        return Score(*found, self._drift(a, w), self._drift(b, w), toward_b)

    def _drift(self, side: Side, w: Tensor) -> float | None:
        probe = self._probes[side.name]
        if probe is not None:
            return probe(side.w, w)
        if side.sketch is not None:
            gap = w - side.w
            return side.sketch.metric.inner(gap, gap)
        return None


def _kept_metric(sides: Sides, plan: Plan, options: MergeOptions) -> Metric:
    """Return the metric of the start side's function: its sketch, made now if it has inputs."""
    if plan.preset != "sketch" or options.metric == "euclidean":
        return EuclideanMetric()
    if plan.start.sketch is None:
        plan.start.sketched_now = True
        assert plan.start.manifold is not None
        assert plan.start.manifold_name is not None
        plan.start.sketch = make_sketch(
            sides.network,
            plan.start.w,
            plan.start.manifold,
            plan.start.manifold_name,
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
