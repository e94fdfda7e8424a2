"""Stages of a preset: candidates walked, the best point of each, and the best candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.evaluation.drift import Probe, Scorer
from geomerge.evaluation.pick import PickRule, Score
from geomerge.evaluation.search import search, shortest_of_best
from geomerge.merging.limits import stage_constraints
from geomerge.merging.presets.base import Preset, Stage
from geomerge.merging.recording import Recorder, Recording
from geomerge.merging.walker import Walk
from geomerge.paths.leg import Leg, StepRecord
from geomerge.walks.constraints import Constraints
from geomerge.walks.state import WalkState
from geomerge.walks.walk import WalkPoint

__all__ = [
    "STATISTICS",
    "Candidate",
    "CandidateWalks",
    "PickedStage",
    "WalkedStage",
    "walk_plan",
    "walk_stage",
]

STATISTICS = 500  # inputs of each expert from which statistics of a point that may be picked are


@dataclass(frozen=True)
class Candidate:
    """One walked candidate.

    Attributes:
        damping: Damping mu of its walk (paper's preset: the least mu; learned: the first).
        leg: Points of its walk.
        step: Picked point.
        score: Score of that point.
        seen: Scores of every point that the pick looked at, by step; of large networks most are on
            part of the examples.
        value: Value of that point by the pick rule.
        length: Length of its walk up to the pick, on the same inputs for all candidates.
        budgets: Budgets of its walk; None without any.
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


class CandidateWalks:
    """Maker of the walks of a stage's candidates, with their budgets.

    Args:
        preset: Preset that walks.
        stage: One of its stages.
        start: Point that the walks start from, shape (n,).

    Attributes:
        measure: Probe of the steps' functional change; None without inputs.
    """

    def __init__(self, preset: Preset, stage: Stage, start: Tensor) -> None:
        self._preset, self._stage, self._start = preset, stage, start
        self._make = preset.stage_walk(stage, start)
        self.measure: Probe | None = preset.walker.probe(stage.kept)

    def walk(
        self, damping: float, state: WalkState, rate: float = 1.0
    ) -> tuple[Walk, Constraints | None]:
        """Return the walk of a candidate, and the budgets that bind it.

        Args:
            damping: Damping of the candidate.
            state: State of the walk.
            rate: Share of the learning rate.
        """
        budgets = state.part("budgets")
        constraints = stage_constraints(self._preset, self._stage, self._start, budgets)
        return self._make(damping, state, rate, constraints), constraints


@dataclass(frozen=True)
class WalkedStage:
    """Walks of a stage's candidates, not yet picked from.

    Attributes:
        preset: Preset that walked.
        stage: Stage that was walked.
        legs: Walks, one per candidate.
        budgets: Budgets of each walk.
        diagonal_only: Tensors of which the metric holds only the diagonal.
    """

    preset: Preset
    stage: Stage
    legs: list[Leg]
    budgets: list[Constraints | None]
    diagonal_only: tuple[str, ...]

    def picked(self, rule: PickRule) -> PickedStage:
        """Pick a point of every candidate by a rule, and the shortest of the best candidates."""
        walked = zip(self.stage.candidates, self.legs, self.budgets, strict=True)
        candidates = [self._pick(*each, rule) for each in walked]
        level = max(rule.level(c.score) for c in candidates)
        best = shortest_of_best(
            [c for c in candidates if rule.level(c.score) == level],
            lambda c: c.value,
            lambda c: c.length,
            rule.margin,
        )
        w = self.preset.space.settle(best.leg.weights(best.step))
        return PickedStage(self, candidates, best, w)

    def _pick(
        self, damping: float, leg: Leg, budgets: Constraints | None, rule: PickRule
    ) -> Candidate:
        prepared, experts = self.preset.prepared, self.stage.experts

        def measured(scorer: Scorer, step: int) -> Score:
            w = self.preset.space.settle(leg.weights(step), STATISTICS)
            return replace(scorer(w), feasible=budgets is None or budgets.within(w))

        rough = prepared.rough_scorer(experts)
        step, scores = search(
            [step for step, _ in leg.marks], partial(measured, prepared.scorer(experts)), rule,
            None if rough is None else partial(measured, rough),
        )  # fmt: skip
        score = scores[step]
        return Candidate(
            damping=damping,
            leg=leg,
            step=step,
            score=score,
            seen=scores,
            value=rule.value(score),
            length=leg.length_at(step),
            budgets=budgets,
            steps=list(leg.steps),
        )


@dataclass(frozen=True)
class PickedStage:
    """Stage whose point is picked.

    Attributes:
        walked: Walks of its candidates.
        candidates: Candidate walks, each at its picked point.
        chosen: Candidate that was picked from.
        w: Picked point with its running statistics, shape (n,); the next stage starts here.
    """

    walked: WalkedStage
    candidates: list[Candidate]
    chosen: Candidate
    w: Tensor = field(repr=False)

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.walked.stage

    @property
    def preset(self) -> Preset:
        """The preset that walked."""
        return self.walked.preset


def walk_plan(preset: Preset, rule: PickRule, recorder: Recorder) -> Iterator[PickedStage]:
    """Walk the stages of a preset one after the other, each from the point picked of the last.

    Args:
        preset: Preset, made for its networks.
        rule: Rule by which points and candidates are picked.
        recorder: Recorder of the walks.

    Yields:
        Each stage as soon as its point is picked.
    """
    start = _best_start(preset, rule)
    for number, stage in enumerate(preset.stages):
        walked = walk_stage(preset, stage, start, recorder.within(f"stage-{number}"))
        picked = walked.picked(rule)
        yield picked
        start = picked.w


def _best_start(preset: Preset, rule: PickRule) -> Tensor:  # (n,)
    """Return the best point to start from by the pick rule, whose condition counts at the end only.

    A note states which of several it is, unless it is the mean of networks without a base.
    """
    starts, prepared = preset.starts(), preset.prepared
    usual = best = next(starts)
    other = next(starts, None)
    if other is None:
        return usual.weights
    experts = preset.stages[0].experts
    scorer = prepared.rough_scorer(experts) or prepared.scorer(experts)
    ranks = {usual.name: rule.rank(scorer(usual.weights))}
    for start in chain((other,), starts):
        ranks[start.name] = rule.rank(scorer(start.weights))
        (*level, value), (*before, most) = ranks[start.name], ranks[best.name]
        if level == before and value > most + start.margin:
            best = start
    if best is not usual or prepared.base is not None:
        listed = ", ".join(f"{name} {rank[-1] + 0.0:.4g}" for name, rank in ranks.items())
        note = f"the walk starts at {best.name}, the best by {rule.name}: {listed}"
        if note not in prepared.notes:
            prepared.notes.append(note)
    return best.weights


def _before_divergence(points: Iterator[WalkPoint], recording: Recording) -> Iterator[WalkPoint]:
    """Pass on a walk until it diverges, at its last point, which its state says."""
    try:
        yield from points
    except NumericalError:
        if not recording.file.steps:
            raise
        recording.state.values["diverged"] = True


def walk_stage(
    preset: Preset,
    stage: Stage,
    start: Tensor,  # (n,)
    recorder: Recorder,
) -> WalkedStage:
    """Walk once for every candidate of a stage.

    Args:
        preset: Preset that walks.
        stage: One of its stages.
        start: Point that the walks start from.
        recorder: Recorder of the walks.

    Raises:
        NumericalError: If a walk diverges in its first step, or has no rate to halve.
    """
    walks = CandidateWalks(preset, stage, start)
    name = preset.start.name if preset.start else "middle"
    goal = "+".join(expert.name for expert in stage.toward) or "the least predicted drift"
    legs, budgets = [], []
    for damping in stage.candidates:
        label = f"toward {goal}" + (f", damping {damping:g}" if damping else "")
        tried: list[str] = []
        for attempt in range(preset.retries + 1):
            recording = recorder.open(f"candidate-{damping:g}-{attempt}")
            state, rate = recording.state, 0.5**attempt
            if recording.diverged and attempt < preset.retries:  # before an interruption
                tried.append(f"{rate:g}")
                continue
            walk, constraints = walks.walk(damping, state, rate)
            if attempt and attempt == preset.retries:
                walk = walk._replace(points=_before_divergence(walk.points, recording))
            try:
                leg = recording.follow(walk, label, name, start, walks.measure)
            except NumericalError:
                if attempt == preset.retries or not recording.file.steps:
                    raise
                tried.append(f"{rate:g}")
                recording.leave()
                continue
            if recording.diverged:
                leg.marks.pop()
                told = (
                    f"at every learning rate down to {rate:g} x the usual one; the last walk is "
                    f"kept up to step {leg.marks[-1][0]}"
                )
            else:
                told = f"at {', '.join(tried)} x the learning rate and was walked at {rate:g} x"
            if tried:
                note = f"the walk {recorder.title}{label} diverged {told}"
                preset.prepared.notes.append(note)
            legs.append(leg)
            budgets.append(constraints)
            break
    return WalkedStage(preset, stage, legs, budgets, preset.diagonal_only(stage, start))
