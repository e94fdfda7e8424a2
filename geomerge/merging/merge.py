"""Two networks -> a path between them and the network on it that does both tasks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from geomerge.checkpoint import Checkpoint
from geomerge.crossover import PickRule, Score, accuracy, parse_pick, search
from geomerge.errors import OptionError
from geomerge.merging.monitor import Monitor, Progress
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side, Sides, prepare_sides
from geomerge.merging.walks import Probe, Walker
from geomerge.metric import EuclideanMetric, KroneckerMetric, Metric, make_sketch
from geomerge.path import Leg, WeightPath, record_leg

__all__ = ["Candidate", "Merge", "Plan", "Scorer", "merge", "plan_merge"]

SKETCH_DAMPINGS = (1e-5, 3e-5, 1e-4)
PAPER_DAMPINGS = (3e-4, 1e-3, 3e-3)
WITHIN = 0.005  # of candidates this near to the best score the shortest path wins


@dataclass(frozen=True)
class Plan:
    """What a merge will do.

    Attributes:
        preset: ``"sketch"`` or ``"paper"``.
        start: The side that the first walk starts from; its function is kept.
        goal: The other side.
        candidates: Dampings, one walk each.
    """

    preset: str
    start: Side
    goal: Side
    candidates: tuple[float, ...]


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


@dataclass
class Merge:
    """The outcome of a merge.

    Attributes:
        sides: Both networks and what they brought.
        plan: What was done.
        rule: How the point was picked.
        candidates: All that were walked.
        chosen: The one that the path goes through.
        path: The path from a to b.
        t: Where on the path the crossover lies.
        w: The crossover's weights, shape (n,).
        kept: The metric of the first walk's kept function.
        folder: Where the path is stored; a temporary folder if none was given.
    """

    sides: Sides
    plan: Plan
    rule: PickRule
    candidates: list[Candidate]
    chosen: Candidate
    path: WeightPath
    t: float
    w: Tensor
    kept: Metric
    folder: Path

    def checkpoint(self) -> Checkpoint:
        """Return the crossover network, ready to save."""
        return self.path.checkpoint(self.t)


def plan_merge(sides: Sides, options: MergeOptions) -> Plan:
    """Choose preset and roles from what the sides bring.

    Raises:
        OptionError: If what is there does not allow the preset, or any.
    """
    for goal, start in ((sides.a, sides.b), (sides.b, sides.a)):
        keepable = start.sketch or start.manifold or options.metric == "euclidean"
        explicit = options.preset == "sketch"
        known = start.sketch or start.manifold or explicit
        if options.preset != "paper" and goal.manifold and keepable and known:
            return Plan("sketch", start, goal, _settings(SKETCH_DAMPINGS, options))
    if options.preset == "sketch":
        raise OptionError(
            "the sketch preset needs inputs of one network's task and a sketch of the other "
            "network; name the inputs with --manifold and make the sketch with geomerge sketch"
        )
    for start, goal in ((sides.a, sides.b), (sides.b, sides.a)):
        if start.manifold:
            return Plan("paper", start, goal, _settings(PAPER_DAMPINGS, options))
    raise OptionError(
        "no inputs to walk on; name the task of one network with --manifold, such as "
        "--manifold mnist"
    )


def merge(
    a: Checkpoint,
    b: Checkpoint,
    options: MergeOptions,
    *,
    folder: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Merge:
    """Walk from one network toward the other's function or weights, and pick the crossover.

    Args:
        a: Network a, where the path starts (t = 0).
        b: Network b, where it ends (t = 1).
        options: What the walk may use and how the point is picked.
        folder: Where the path is stored; None takes a temporary folder.
        on_progress: Called after each step.

    Returns:
        The path and the crossover. Neither network is changed.

    Raises:
        GeomergeError: If the two do not belong together, data is missing, or the walk diverges.
    """
    sides = prepare_sides(a, b, options)
    plan = plan_merge(sides, options)
    rule = choose_rule(sides, plan, options)
    folder = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="geomerge-"))
    folder.mkdir(parents=True, exist_ok=True)
    walker = Walker(sides.network, plan.goal if plan.preset == "sketch" else plan.start, options)
    metric = _kept_metric(sides, plan, options)
    scorer = Scorer(sides, plan, metric, options)
    monitor = Monitor(sides, on_progress)
    candidates: list[Candidate] = []
    for damping in plan.candidates:
        if plan.preset == "sketch":
            sharp = metric.sharpened(damping) if isinstance(metric, KroneckerMetric) else metric
            walk, steps = walker.learn(plan.start, sharp, damping)
        else:
            walk, steps = walker.toward(plan.goal.w, damping)
        leg = record_leg(
            folder / f"candidate-{damping:g}",
            plan.start.name,
            plan.start.w,
            monitor.watch(walk, f"from {plan.start.name}, damping {damping:g}", steps),
            options.points,
            _probe(sides, plan.start, options),
        )
        candidates.append(_pick(leg, damping, scorer, rule))
    best = max(c.value for c in candidates)
    chosen = min((c for c in candidates if c.value >= best - WITHIN), key=lambda c: c.length)
    for candidate in candidates:
        if candidate is not chosen:
            shutil.rmtree(candidate.leg.folder)
    leg = _moved(chosen.leg, folder)
    if plan.preset == "sketch":
        leg.cut(chosen.step)
        crossover = leg.weights(chosen.step)
        walk, steps = walker.reach(crossover)
        closing = record_leg(
            folder,
            plan.goal.name,
            plan.goal.w,
            monitor.watch(walk, f"from {plan.goal.name} to the crossover", steps),
            options.points,
            _probe(sides, plan.goal, options),
        )
        legs = [leg, closing]
    else:
        legs = [leg]
    t = WeightPath.write(folder, a, b, legs, (leg, chosen.step), options.points)
    path = WeightPath(folder)
    return Merge(sides, plan, rule, candidates, chosen, path, t, path.at(t), metric, folder)


def _settings(usual: tuple[float, ...], options: MergeOptions) -> tuple[float, ...]:
    if options.damping is not None:
        return (options.damping,)
    # Damping the Euclidean metric changes nothing.
    return (0.0,) if options.metric == "euclidean" else usual


def choose_rule(sides: Sides, plan: Plan, options: MergeOptions) -> PickRule:
    """Make the pick rule asked for, or the best that the data allows.

    Raises:
        OptionError: If the rule needs data that is not there.
    """
    experts = {
        side.name: accuracy(sides.network, side.w, side.task.select) if side.task else None
        for side in (sides.a, sides.b)
    }
    measured = all(value is not None for value in experts.values())
    drifts = plan.preset == "sketch" and plan.start.sketch is not None
    if options.pick is None:
        default = "max-min" if measured else "equal-drift" if drifts else "a>=0.80"
        if default == "a>=0.80" and experts["a"] is None:
            default = "b>=0.80"
        return parse_pick(default, experts["a"], experts["b"])
    rule = parse_pick(options.pick, experts["a"], experts["b"])
    if rule.needs == "accuracies" and not measured:
        missing = " and ".join(name for name, value in experts.items() if value is None)
        raise OptionError(
            f"--pick {rule.name} needs labelled data of both tasks and {missing} has none; name "
            "it with --task-a or --task-b, or use --pick equal-drift or 'a>=0.80'"
        )
    if rule.needs == "one" and experts[rule.name[0]] is None:
        raise OptionError(
            f"--pick {rule.name} needs labelled data of {rule.name[0]}; name it with "
            f"--task-{rule.name[0]}"
        )
    if rule.needs == "drifts" and not (drifts or (sides.a.task and sides.b.task)):
        raise OptionError(
            "--pick equal-drift needs a sketch or inputs of each side; make a sketch with "
            "geomerge sketch, or use --pick 'a>=0.80'"
        )
    return rule


class Scorer:
    """Measures points for the pick: on selection splits, or by the sketch where there is none.

    Args:
        sides: Both networks.
        plan: Who is kept.
        metric: The kept side's metric; in the sketch preset drifts without data come from it.
        options: For the output that drifts are measured in.
    """

    def __init__(self, sides: Sides, plan: Plan, metric: Metric, options: MergeOptions) -> None:
        self._sides, self._plan, self._metric = sides, plan, metric
        self._output = options.output
        self._probes = {s.name: _probe(sides, s, options) for s in (sides.a, sides.b)}

    def __call__(
        self,
        w: Tensor,  # (n,)
        along: float,
    ) -> Score:
        """Return all that can be measured of a point, ``along`` its walk from 0 to 1."""
        network, a, b = self._sides.network, self._sides.a, self._sides.b
        found = {s.name: accuracy(network, w, s.task.select) if s.task else None for s in (a, b)}
        toward_b = along if self._plan.start is a else 1 - along
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


def _probe(sides: Sides, side: Side, options: MergeOptions) -> Probe | None:
    """Return what measures changes of a side's function, on inputs that the walk may not use."""
    if side.task is not None:
        return Probe(sides.network, side.task.select.inputs, options.output)
    if side.manifold is not None:
        return Probe(sides.network, side.manifold, options.output)
    return None


def _pick(leg: Leg, damping: float, scorer: Scorer, rule: PickRule) -> Candidate:
    steps = [step for step, _ in leg.marks]
    along = {s: length / leg.length if leg.length else 0.0 for s, length in leg.marks}
    step, scores = search(steps, lambda s: scorer(leg.weights(s), along[s]), rule)
    length = leg.length_at(step)
    return Candidate(damping, leg, step, scores[step], rule.value(scores[step]), length)


def _moved(leg: Leg, folder: Path) -> Leg:
    """Move a leg's files up into the path's own folder."""
    for file in leg.folder.iterdir():
        file.rename(folder / file.name)
    leg.folder.rmdir()
    leg.folder = folder
    return leg
