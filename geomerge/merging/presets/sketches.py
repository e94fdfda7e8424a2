"""Sketches preset: the point of least predicted drift from all networks, without any inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from geomerge.expert import Expert
from geomerge.merging.least_drift import LeastDrift, least_drift
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.base import Preset, Stage, StageWalk, Start
from geomerge.merging.presets.registry import preset
from geomerge.merging.walker import STRAIGHT_STEPS, Walk
from geomerge.metrics.kronecker.mean import KroneckerMean
from geomerge.networks.hugging_face import predicted_by
from geomerge.walks.constraints import Constraints
from geomerge.walks.state import WalkState
from geomerge.walks.walk import walk_straight

__all__ = [
    "SketchesPreset",
    "drift_weights",
    "mean_of_sketches",
    "mean_point",
    "predicted_gain",
    "usual_damping",
]

# Share of a layer's mean eigenvalue. Chosen on selection splits of the BERTs' training files; the
# networks of other tasks that benchmarks/fine_tunes.py trains had no say.
DAMPING = 0.1
# The same of causal language models, chosen on the selection texts of benchmarks/causal_lm.py:
# half of their weights is an embedding, of which a metric has the diagonal alone.
LANGUAGE_DAMPING = 0.3
_NO_BASE = (
    "no common base was given: the sketches preset is for fine-tunes of one, and fails between "
    "networks that were initialised independently"
)


@preset("sketches")
class SketchesPreset(Preset):
    """Move from the mean of all weights to their mean in the metrics of their sketches."""

    about = "from the mean of all weights to their mean in the metrics of the networks' sketches"
    preference = 3
    retries = 0  # nothing is drawn, there is no rate to halve

    def __init__(self, prepared: PreparedMerge) -> None:
        super().__init__(prepared)
        self.start, self.goal = None, self.space.experts[-1]
        if prepared.base is None and _NO_BASE not in prepared.notes:
            prepared.notes.append(_NO_BASE)
        self.stages = (Stage(self.space.experts, (), self._candidates((usual_damping(prepared),))),)

    @classmethod
    def problem(cls, prepared: PreparedMerge) -> str | None:
        """Return the problem of networks with neither a sketch nor inputs to make one."""
        blind = [e.name for e in prepared.space if e.sketch is None and e.inputs is None]
        if blind:
            return (
                "the sketches preset needs a sketch of every network, and there is none for "
                f"{' and '.join(blind)}; make it with geomerge sketch, or name the task with "
                "`inputs`"
            )
        if prepared.options.walk.learn is not None:
            return (
                "`learn` damping needs a walk on inputs; name them with `inputs`, or leave it out"
            )
        return None

    def conflict(self) -> str | None:
        """Return the sentence on legs, or on a metric, that conflict with those of the sketches."""
        if self.options.walk.legs is not None:
            return "`legs` of the sketches preset are straight lines in any case; leave it out"
        if self.kind.data_free and not self.kind.isotropic:
            return None
        return (
            f"the sketches preset uses the metric of the sketches, kronecker, and `metric` is "
            f"{self.kind.name}; leave it out, or name inputs with `inputs`"
        )

    @cached_property
    def _middle(self) -> Tensor:  # (n,)
        return self.space.middle()

    def starts(self) -> Iterator[Start]:
        """Yield the mean of the weights, around which the mean of the sketches is damped."""
        yield Start("the mean of the weights", self.space.settle(self._middle))

    def stage_walk(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> StageWalk:
        """Return the maker of the walks: straight ones to the mean of each damping."""
        return partial(self._walk, mean_of_sketches(self.prepared, self._middle), start)

    def _walk(
        self,
        mean: KroneckerMean,
        start: Tensor,  # (n,)
        damping: float,
        state: WalkState,
        rate: float = 1.0,
        constraints: Constraints | None = None,
    ) -> Walk:
        found = self._least(mean, damping, constraints)
        target, prices = _where_free(self.prepared, found.w), self._prices(found)
        points = walk_straight(start, target, mean.mean, self.close_steps, state)
        if constraints is not None:
            constraints.note(found.programs, found.residual)
            points = (replace(point, multipliers=prices) for point in points)
        return Walk(points, self.close_steps)

    def _least(
        self, mean: KroneckerMean, damping: float, constraints: Constraints | None
    ) -> LeastDrift:
        """Return the point of least predicted drift that keeps the budgets."""
        names = [expert.name for expert in self.space]
        limits = {} if constraints is None else constraints.limits
        bounds = {names.index(name): limit for name, limit in limits.items()}
        worst = self.options.drift.least == "worst"
        return least_drift(mean, damping, drift_weights(self.prepared), bounds, worst=worst)

    def _prices(self, found: LeastDrift) -> dict[str, float]:
        names = [expert.name for expert in self.space]
        return {names[place]: price for place, price in found.prices.items() if price > 0}

    def close(
        self,
        end: Expert,
        crossover: Tensor,  # (n,)
        state: WalkState,
    ) -> Walk:
        """Return the straight line from an end, measured by its sketch."""
        metric = self.prepared.sketch(end).metric
        points = walk_straight(end.weights, crossover, metric, self.close_steps, state)
        return Walk(points, self.close_steps)

    def closing_steps(
        self,
        end: Expert,
        crossover: Tensor,  # (n,)
        fall: float | None = None,
    ) -> int:
        """Return the points of a straight line."""
        return self.close_steps

    @property
    def straight_legs(self) -> bool:
        """Whether lines stand in for walks: they do not, there are lines whatever the size."""
        return False

    @property
    def walked_on(self) -> tuple[Expert, ...]:
        """No network: inputs are not used."""
        return ()

    @property
    def predicts_drifts(self) -> bool:
        """Whether drifts are predicted by sketches: they are, for every network."""
        return True

    @property
    def bounds_predictions(self) -> bool:
        """Whether budgets bound predicted drifts: sketches are all that counts here."""
        return True

    def diagonal_only(
        self,
        stage: Stage,
        start: Tensor,  # (n,)
    ) -> tuple[str, ...]:
        """Return the tensors of which a sketch holds only the diagonal."""
        sketches = [self.prepared.sketch(expert).metric for expert in self.space]
        return tuple(dict.fromkeys(name for metric in sketches for name in metric.diagonal_only))

    def _measured(self, name: str) -> str:
        sketch = self.prepared.sketch(self.space[name])
        label = self.kind.label(self.options.measure.output)
        return f"{label}, sketch of {sketch.meta['inputs']} inputs, frozen"

    def steps_of(self, stage: Stage) -> int:
        """Return the points of a straight line."""
        return self.close_steps

    @property
    def close_steps(self) -> int:
        """Points of a straight line; of a large network only those that are stored."""
        stored = self.prepared.points
        fewer = stored < self.options.machine.points
        return min(STRAIGHT_STEPS, stored - 1) if fewer else STRAIGHT_STEPS

    def measurements(self, steps: int) -> int:
        """Return zero: nothing is measured on the way."""
        return 0


def mean_of_sketches(
    prepared: PreparedMerge,
    anchor: Tensor | None = None,  # (n,)
) -> KroneckerMean:
    """Return the solver for the mean of all networks in the metrics of their sketches.

    Args:
        prepared: Merge of networks with sketches, or with inputs that they are made of.
        anchor: Point of the damping; None takes the mean of all weights.
    """
    experts = prepared.space.experts
    return KroneckerMean(
        [prepared.sketch(expert).metric for expert in experts],
        [expert.weights for expert in experts],
        prepared.space.middle() if anchor is None else anchor,
        drift_weights(prepared),
    )


def drift_weights(prepared: PreparedMerge) -> list[float]:
    """Return the weight of each network's predicted drift, 1 where the options name none."""
    known = prepared.options.drift.weight or {}
    return [known.get(expert.name, 1.0) for expert in prepared.space]


def usual_damping(prepared: PreparedMerge) -> float:
    """Return the damping of the mean of these networks, a share of each layer's mean eigenvalue."""
    configs = [expert.meta.get("config") for expert in prepared.space]
    generates = any(isinstance(c, dict) and predicted_by(c) == "next" for c in configs)
    return LANGUAGE_DAMPING if generates else DAMPING


def predicted_gain(prepared: PreparedMerge) -> tuple[float, float] | None:
    """Return what the mean in the sketches' metrics is predicted to gain over the plain average.

    The eta of EpiMer (arXiv 2605.26693): with c the pull of all metrics g_i at the average, which
    is zero where these are equal, the mean drift falls by c' (sum_i g_i + k mu)^-1 c / k.

    Args:
        prepared: Merge of the networks.

    Returns:
        The predicted drift of the average, mean over the networks, and by how much the mean in
        the metrics has less; None where a network has no sketch.
    """
    if any(expert.sketch is None for expert in prepared.space):
        return None
    solver, weights = mean_of_sketches(prepared), drift_weights(prepared)
    middle = prepared.space.middle()
    drifts, pulls = solver.drifts(middle), solver.pulls(middle)
    pull = torch.stack([-w * p for w, p in zip(weights, pulls, strict=True)]).sum(dim=0)
    gain = float(pull.double() @ solver.response(pull, usual_damping(prepared), weights).double())
    total = sum(w * drift for w, drift in zip(weights, drifts, strict=True))
    return total / sum(weights), gain / sum(weights)


def mean_point(
    prepared: PreparedMerge, solver: KroneckerMean | None = None, damping: float | None = None
) -> Tensor:  # (n,)
    """Return the mean in the metrics of the sketches, where no weight moves that must not.

    Args:
        prepared: Merge of the networks.
        solver: Solver that :func:`mean_of_sketches` returned; None makes one.
        damping: Damping as a share of each layer's mean eigenvalue; None takes the usual one.
    """
    solver = solver or mean_of_sketches(prepared)
    damping = usual_damping(prepared) if damping is None else damping
    return _where_free(prepared, solver.at(damping))


def _where_free(prepared: PreparedMerge, w: Tensor) -> Tensor:  # (n,)
    still = prepared.still
    return w if still is None else torch.where(still, prepared.space.middle(), w)
