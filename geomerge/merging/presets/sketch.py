"""Sketch preset: from one network, kept by its sketch, toward the functions of the others."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from geomerge.errors import OptionError
from geomerge.merging.options import MergeOptions
from geomerge.merging.presets.base import LegDescription, Preset, Stage, StageWalk
from geomerge.merging.presets.registry import preset
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walker import Walk, steps_taken
from geomerge.metrics import EuclideanMetric, Metric, Sketch, combine, make_sketch
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
    preference = 1

    def __init__(self, space: Sides, options: MergeOptions) -> None:
        super().__init__(space, options)
        roles = _roles(space, options)
        assert roles is not None, "the preset has a problem"
        self.start, others = roles
        self.goal = others[-1]
        self._sketches: dict[str, Sketch] = {}  # of functions learned on the way
        self._diagonal: tuple[str, ...] = ()
        stages, kept = [], [self.start]
        for side in others:
            usual = DAMPINGS if len(kept) == 1 else CHAIN_DAMPINGS
            stages.append(Stage(tuple(kept), (side,), self._candidates(usual)))
            kept.append(side)
        self.stages = tuple(stages)

    @classmethod
    def problem(cls, space: Sides, options: MergeOptions) -> str | None:
        """Return what is missing if no end of the path can be kept while the others are learned."""
        if _roles(space, options) is not None:
            return None
        return (
            "the sketch preset needs a sketch of one network and inputs of every other's task; "
            "name the task of each with `inputs` and make the sketch with geomerge sketch"
        )

    def stage_walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> StageWalk:
        """Return what makes the walks, in the metric of what is kept, measured once for all."""
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
        walk = walker.settings(damping, rate * (self.options.learning_rate or usual))
        learner = walker.learner(damping, state, lambda w: metric.mv(w - start))
        direction = walker.direction(learned)
        direction.skip(steps_taken(state))
        points = walk_toward_function(
            start, lambda w: metric, [direction], walk, constraints, learner, state=state
        )
        return Walk(points, walk.steps)

    def _kept_metric(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> Metric:
        """Return the metric of the functions that a stage keeps: sketches, or measured now."""
        options = self.options
        if options.metric == "euclidean":
            return EuclideanMetric()
        if options.metric != "kronecker":
            blind = [s.name for s in stage.kept if s.manifold is None]
            if blind:
                raise OptionError(
                    f"`metric` {options.metric} needs inputs of {' and '.join(blind)}; name them "
                    "with `inputs`, or use `metric` kronecker with its sketch"
                )
            return self.walker.metric_at(stage.kept, stage.candidates[0])(start)
        metrics = []
        for k, side in enumerate(stage.kept):
            # A sketch is worth something at the network that it was measured at, and along a walk
            # that kept its function; for a function learned on the way that is where it was
            # learned.
            sketch = self._sketches.get(side.name) if k else side.sketch
            if sketch is None:
                assert side.manifold is not None
                assert side.manifold_name is not None
                side.sketched_now = True
                sketch = make_sketch(
                    side.network,
                    start,
                    side.manifold,
                    side.manifold_name,
                    output=options.output,
                    seed=options.seed,
                )
                if k:
                    self._sketches[side.name] = sketch
                else:
                    side.sketch = sketch
            metrics.append(sketch.metric)
        return combine(metrics)

    @property
    def predicts_drifts(self) -> bool:
        """Whether the network that is kept brought a sketch."""
        return self.start is not None and self.start.sketch is not None

    def diagonal_only(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> tuple[str, ...]:
        """Return the tensors of which the frozen metric knows only the diagonal."""
        return self._diagonal

    def _leg(self, side: Side) -> LegDescription:
        if side is not self.start:
            return super()._leg(side)
        kept, options = self.stages[-1].kept, self.options
        names = tuple(s.name for s in kept)
        metric = (
            f"{options.metric} ({options.output}), measured on inputs of {' and '.join(names)} "
            "where the walk starts, frozen"
        )
        if options.metric == "kronecker":
            counts = [s.sketch.meta["inputs"] for s in kept if s.sketch]
            metric = (
                f"kronecker ({options.output}), sketch of {' + '.join(map(str, counts))} inputs, "
                "frozen"
            )
        return self._described(side.name, "the crossover", names, metric)

    def measurements(self, steps: int) -> int:
        """Return one: the frozen metric is read once."""
        return 1


def _roles(space: Sides, options: MergeOptions) -> tuple[Side, list[Side]] | None:
    """Return the network to start from, an end of the path, and the others in their order.

    The last network is preferred to the first. None if neither can be kept while every other has
    inputs to be learned on.
    """
    first, *_, last = space
    # Without a metric to keep a function by, only who names the preset may start from any network.
    anywhere = options.metric == "euclidean" and options.preset == SketchPreset.name
    for start in (last, first):
        others = [s for s in space.all[::-1] if s is not start]
        if start is first:
            others.reverse()
        keepable = start.sketch or start.manifold or anywhere
        if keepable and all(s.manifold for s in others):
            return start, others
    return None
