"""Sketch preset: from one network, its sketch as metric, toward the functions of the others."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from geomerge.expert import Expert
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.base import LegDescription, Preset, Stage, StageWalk
from geomerge.merging.presets.registry import preset
from geomerge.merging.walker import Walk, steps_taken
from geomerge.metrics import METRICS, EuclideanMetric, Metric, Sketch, combine
from geomerge.metrics.sketch import INPUTS
from geomerge.walks.constraints import Constraints
from geomerge.walks.state import WalkState
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function

__all__ = ["SketchPreset"]

DAMPINGS = (1e-5, 3e-5, 1e-4)
# A later network is learned while several are kept: less is free, more must be held.
CHAIN_DAMPINGS = (3e-6, 1e-5, 3e-5)
# The Euclidean metric is far weaker at the rate of the others: the best of 0.0005 to 0.2 on
# networks of another seed than those of the benchmark.
EUCLIDEAN_RATE = 0.002


@preset("sketch")
class SketchPreset(Preset):
    """Walk from one network toward the others' functions one by one, in a frozen metric."""

    about = "from one network, kept by its sketch, toward the others' functions one after the other"
    preference = 2
    dampings: ClassVar[tuple[float, ...]] = DAMPINGS

    def __init__(self, prepared: PreparedMerge) -> None:
        super().__init__(prepared)
        roles = self.roles(prepared)
        assert roles is not None, "the preset has a problem"
        self.start, others = roles
        self.goal = others[-1]
        self._learned: dict[str, Sketch] = {}  # of functions learned on the way
        self._diagonal: tuple[str, ...] = ()
        stages, kept = [], [self.start]
        for expert in others:
            usual = self.dampings if len(kept) == 1 else CHAIN_DAMPINGS
            stages.append(Stage(tuple(kept), (expert,), self._candidates(usual)))
            kept.append(expert)
        self.stages = tuple(stages)

    @classmethod
    def problem(cls, prepared: PreparedMerge) -> str | None:
        """Return the problem if no end of the path can be kept while the others are learned."""
        if cls.roles(prepared) is not None:
            return None
        return (
            "the sketch preset needs a sketch of one network and inputs of every other's task; "
            "name the task of each with `inputs` and make the sketch with geomerge sketch"
        )

    @classmethod
    def roles(cls, prepared: PreparedMerge) -> tuple[Expert, list[Expert]] | None:
        """Return the expert to start from, an end of the path, and the others in their order.

        The last expert is preferred to the first. None if neither can be kept while every other has
        inputs to be learned on.

        Args:
            prepared: Experts in one weight space, and the options of their merge.
        """
        options, (first, last) = prepared.options, prepared.space.ends
        # Without a metric to keep a function by, a walk may start anywhere, but only on demand.
        anywhere = METRICS[options.measure.metric].isotropic and options.preset == cls.name
        for start in (last, first):
            others = [expert for expert in prepared.space.experts[::-1] if expert is not start]
            if start is first:
                others.reverse()
            keepable = start.sketch is not None or start.inputs is not None or anywhere
            if keepable and all(expert.inputs is not None for expert in others):
                return start, others
        return None

    def conflict(self) -> str | None:
        """Return that a metric needs inputs of the network that is kept where it has none."""
        assert self.start is not None
        if self.start.inputs is not None or self.kind.data_free:
            return None
        return (
            f"`metric` {self.kind.name} needs inputs of {self.start.name}; name them with "
            "`inputs`, or use `metric` kronecker with its sketch"
        )

    def stage_walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> StageWalk:
        """Return the maker of the walks, in the metric of the kept functions, measured once."""
        metric = self._kept_metric(stage, start)
        self._diagonal = metric.diagonal_only
        return partial(self._walk, stage, start, metric)

    def _walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
        metric: Metric,
        damping: float,
        state: WalkState,
        rate: float = 1.0,
        constraints: Constraints | None = None,
    ) -> Walk:
        walker, (learned,) = self.walker, stage.learned
        usual = FunctionWalkOptions.learning_rate
        if metric.isotropic:
            usual = EUCLIDEAN_RATE
        # Without inputs lengths are the metric's, and must be one metric's for all candidates.
        if walker.probe(stage.kept) is not None:
            metric = metric.truncate(damping)
        metric = walker.on_plane(metric)
        walk = walker.settings(damping, rate * (self.options.walk.learning_rate or usual))
        learner = walker.learner(damping, state, lambda w: metric.mv(w - start))
        direction = walker.direction(learned)
        direction.skip(steps_taken(state))
        points = walk_toward_function(
            start,
            lambda w: metric,
            [direction],
            walk,
            budgets=constraints,
            learner=learner,
            state=state,
        )
        return Walk(points, walk.steps)

    def _kept_metric(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> Metric:
        """Return the metric of the functions that a stage keeps: sketches, or measured now."""
        if self.kind.isotropic:
            return EuclideanMetric()
        if not self.kind.data_free:
            return self.walker.metric_at(stage.kept, stage.candidates[0])(start)
        first, *later = stage.kept
        # A sketch is worth something at the network that it was measured at, and along a walk that
        # kept its function; for a function learned on the way that is where it was learned.
        for expert in later:
            if expert.name not in self._learned:
                self._learned[expert.name] = self.prepared.sketch_at(expert, start)
        sketches = [self.prepared.sketch(first), *(self._learned[e.name] for e in later)]
        return combine([sketch.metric for sketch in sketches])

    @property
    def predicts_drifts(self) -> bool:
        """Whether the network that is kept brought a sketch."""
        return self.start is not None and self.start.sketch is not None

    def diagonal_only(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> tuple[str, ...]:
        """Return the tensors of which the frozen metric holds only the diagonal."""
        return self._diagonal

    def _leg(self, expert: Expert) -> LegDescription:
        if expert is not self.start:
            return super()._leg(expert)
        kept, label = self.stages[-1].kept, self.kind.label(self.options.measure.output)
        names = tuple(e.name for e in kept)
        if self.kind.data_free:
            known = self.prepared.known_space
            sketches = [known[name].sketch for name in names]
            counts = [str(sketch.meta["inputs"]) for sketch in sketches if sketch is not None]
            metric = f"{label}, sketch of {' + '.join(counts)} inputs, frozen"
        else:
            metric = (
                f"{label}, measured on inputs of {' and '.join(names)} where the walk starts, "
                "frozen"
            )
        return self._described(expert.name, "the crossover", names, metric)

    def measuring(self, stage: Stage) -> tuple[int, int]:
        """Return the number of sketches to make, and of all their inputs."""
        if not self.kind.data_free:
            times, inputs = super().measuring(stage)
            return 1, inputs // max(times, 1)
        made = [e.inputs for e in stage.kept if e.sketch is None and e.inputs is not None]
        if self.kind.isotropic:
            return 0, 0
        return len(made), sum(min(INPUTS, len(inputs)) for inputs in made)

    def measurements(self, steps: int) -> int:
        """Return one: the frozen metric is read once."""
        return 1
