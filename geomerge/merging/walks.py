"""The walks of the presets, from what the sides bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from geomerge.merging.measuring import manifold_of, measured_inputs, metric_of_all
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side, Sides
from geomerge.metrics import EuclideanMetric, MaskedMetric, Metric, Sketch
from geomerge.steps import precondition
from geomerge.walks.constraints import Constraints
from geomerge.walks.damping import DampingLearner
from geomerge.walks.objectives import KLToTeacher, log_probabilities
from geomerge.walks.state import WalkState
from geomerge.walks.walk import (
    FunctionWalkOptions,
    WalkPoint,
    WeightWalkOptions,
    walk_straight,
    walk_toward_function,
    walk_toward_weights,
)

__all__ = ["Walker"]

DAMPING = 1e-3  # of corrections, and of the legs that close a path
RATE = 0.1  # of corrections
# Of walks in the Euclidean metric, which would be far weaker at the other metrics' rate: the best
# of 0.0005 to 0.2 (sketch) and of 0.02 to 0.4 (joint) on networks of another seed than those of
# the benchmark.
EUCLIDEAN_RATES = {"sketch": 0.002, "joint": 0.05}
JOINT_RATE = 1.0  # divided by the number of teachers
JOINT_REFRESH = (0, 20, 60)
STRAIGHT_STEPS = 20
BACK_STEPS = 200  # that take the drift back before the paper's walk goes straight

Walk = tuple[Iterator[WalkPoint], int]  # and how many points it gives at most


class Walker:
    """Makes walks that keep or copy functions of sides on their manifolds.

    Args:
        sides: The networks.
        options: Options of the merge.
    """

    def __init__(self, sides: Sides, options: MergeOptions) -> None:
        self._sides = sides
        self._options = options
        self._targets: dict[str, Tensor] = {}
        self.sketches: dict[str, Sketch] = {}  # made on the way, of functions learned on it
        self.diagonal: tuple[str, ...] = ()  # weights no layer of a measured metric covers

    def learn(
        self,
        start: Tensor,  # (n,)
        metric: Metric,
        side: Side,
        damping: float,
        state: WalkState,
        rate: float = 1.0,
        budgets: Constraints | None = None,
    ) -> Walk:
        """Walk in a frozen metric toward one side's function.

        Args:
            start: Where from.
            metric: Of all that shall be kept.
            side: Whose function is learned, on its manifold.
            damping: mu; the first one where it is learned.
            state: Where the walk is.
            rate: Share of the usual learning rate.
            budgets: What may not get worse.
        """
        usual = FunctionWalkOptions.learning_rate
        if metric.isotropic:
            usual = EUCLIDEAN_RATES["sketch"]
        metric = self._on_plane(metric)
        usual = self._options.learning_rate or usual
        walk = self._settings(damping, rate * usual)
        learner = self._learner(damping, state, lambda w: metric.mv(w - start))
        direction = self.direction(side)
        direction.skip(_steps(state))
        points = walk_toward_function(
            start, lambda w: metric, [direction], walk, budgets, learner, state=state
        )
        return points, walk.steps

    def learn_all(
        self,
        start: Tensor,  # (n,)
        damping: float,
        state: WalkState,
        rate: float = 1.0,
        budgets: Constraints | None = None,
    ) -> Walk:
        """Walk toward the functions of all sides, in the metric of all, measured as it goes."""
        sides = self._sides.all
        euclidean = self._options.metric == "euclidean"
        usual = EUCLIDEAN_RATES["joint"] if euclidean else JOINT_RATE / len(sides)
        usual = self._options.learning_rate or usual
        walk = self._settings(damping, rate * usual, JOINT_REFRESH)
        directions = [self.direction(side) for side in sides]
        for k, direction in enumerate(directions):  # they take turns
            direction.skip((_steps(state) + len(sides) - 1 - k) // len(sides))
        learner = self._learner(damping, state)
        points = walk_toward_function(
            start, self.metric_at(sides, damping), directions, walk, budgets, learner,
            self._sides.settled, state,
        )  # fmt: skip
        return points, walk.steps * len(sides)

    def reach(
        self,
        side: Side,
        target: Tensor,  # (n,)
        state: WalkState,
    ) -> Walk:
        """Walk from a side to exactly the target, keeping the side's function on the way."""
        gap = float((target - side.w).norm())
        walk = WeightWalkOptions(steps=300, radius=max(0.1, gap / 200), damping=DAMPING)
        steps = walk.steps + STRAIGHT_STEPS
        return self._approach_and_close(side, target, walk, None, state), steps

    def toward(
        self,
        side: Side,
        target: Tensor,  # (n,)
        damping: float,
        state: WalkState,
        budgets: Constraints | None = None,
    ) -> Walk:
        """Walk the paper's way: eq. (7) near the target, drift taken back, then straight to it."""
        gap = float((target - side.w).norm())
        walk = WeightWalkOptions(
            steps=self._options.steps or WeightWalkOptions.steps,
            radius=max(WeightWalkOptions.radius, gap / 400),  # else far networks are never reached
            damping=self._options.damping,
            least=damping,
        )
        if self._options.metric == "euclidean":  # nothing drifts back: the path is the line
            straight = walk_straight(side.w, target, EuclideanMetric(), walk.steps, state)
            return straight, walk.steps
        back = FunctionWalkOptions(DAMPING, steps=BACK_STEPS, learning_rate=RATE)
        steps = walk.steps + back.steps + STRAIGHT_STEPS
        return self._approach_and_close(side, target, walk, back, state, budgets), steps

    def _approach_and_close(
        self,
        side: Side,
        target: Tensor,  # (n,)
        walk: WeightWalkOptions,
        back: FunctionWalkOptions | None,
        state: WalkState,
        budgets: Constraints | None = None,
    ) -> Iterator[WalkPoint]:
        near, returned = state.part("near"), state.part("back")
        metric_at = self.metric_at([side], walk.damping or walk.least)
        if not near.values.get("over"):
            correct = None
            if self._options.metric != "euclidean":
                correct = self._corrector(side, _steps(near))
            yield from walk_toward_weights(side.w, target, metric_at, walk, correct, budgets, near)
            near.values["over"] = True
        w = near.tensors.get("w", side.w)
        if back is not None and not returned.values.get("over"):
            metric_back = self.metric_at([side], DAMPING)
            direction = self.direction(side)
            direction.skip(_steps(returned))
            yield from walk_toward_function(
                w, metric_back, [direction], back, budgets, state=returned
            )
            returned.values["over"] = True
        w = returned.tensors.get("w", w)
        yield from walk_straight(w, target, metric_at(w), STRAIGHT_STEPS, state.part("straight"))

    def direction(self, side: Side) -> KLToTeacher:
        """Return the direction toward a side's function, from the first batch on."""
        inputs = manifold_of(side)
        return KLToTeacher(
            side.network, self.targets(side), inputs, FunctionWalkOptions.batch, self._options.seed
        )

    def targets(self, side: Side) -> Tensor:  # (N, m)
        """Return a side's log-probabilities on its manifold."""
        if side.name not in self._targets:
            self._targets[side.name] = log_probabilities(side.network, side.w, manifold_of(side))
        return self._targets[side.name]

    def metric_at(self, sides: Sequence[Side], damping: float) -> Callable[[Tensor], Metric]:
        """Return what measures the metric of sides at a point, made cheap for a known damping."""
        if self._options.metric == "euclidean":
            return lambda w: self._on_plane(EuclideanMetric())
        samples = measured_inputs(sides, self._options)

        def measure(w: Tensor) -> Metric:
            metric = metric_of_all(sides, samples, w, self._options)
            self.diagonal = metric.diagonal_only
            return self._on_plane(metric.truncate(damping))

        return measure

    def _on_plane(self, metric: Metric) -> Metric:
        """Return the metric in which common zeros do not move, where they are to be kept."""
        zeros = self._sides.common_zeros if self._options.keep_zeros else None
        return metric if zeros is None else MaskedMetric(metric, ~zeros)

    def _settings(
        self, damping: float, rate: float, refresh: tuple[int, ...] = (0,)
    ) -> FunctionWalkOptions:
        steps = self._options.steps or FunctionWalkOptions.steps
        return FunctionWalkOptions(damping, steps, rate, refresh=refresh)

    def _learner(
        self,
        damping: float,
        state: WalkState,
        kept: Callable[[Tensor], Tensor] | None = None,
    ) -> DampingLearner | None:
        if self._options.learn != "damping":
            return None
        return DampingLearner(damping, kept, state.part("learner"))

    def _corrector(self, side: Side, steps: int) -> Callable[[Metric, Tensor], Tensor]:
        """Return one preconditioned step back toward the function, against accumulated drift."""
        direction = self.direction(side)
        direction.skip(steps)

        def correct(metric: Metric, w: Tensor) -> Tensor:
            _, v = direction(w)
            return w + RATE * precondition(metric, v, DAMPING)

        return correct


def _steps(state: WalkState) -> int:
    """Return how many steps were taken before."""
    return int(state.values.get("step", 0))
