"""The walks of the two presets, from what the sides bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from geomerge.directions import TowardFunction, log_probabilities
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side
from geomerge.metric import EuclideanMetric, Metric, functional_change
from geomerge.metric.estimate import estimate_kronecker
from geomerge.network import Network
from geomerge.steps import precondition
from geomerge.tasks import Inputs
from geomerge.walk import (
    FunctionWalk,
    WalkPoint,
    WeightWalk,
    walk_straight,
    walk_toward_function,
    walk_toward_weights,
)

__all__ = ["Probe", "Walker"]

DAMPING = 1e-3  # of corrections, and of the leg that closes a path
RATE = 0.1  # of corrections
# Of the walk in the Euclidean metric: the best of 0.0005 to 0.2 on networks of another seed than
# those of the benchmark. At the usual 0.2 it would be a far weaker baseline.
EUCLIDEAN_RATE = 0.002
METRIC_INPUTS = 2000  # per measurement of a metric on the way
PROBE_INPUTS = 256
STRAIGHT_STEPS = 20
BACK_STEPS = 200  # that take the drift back before the paper's walk goes straight

Walk = tuple[Iterator[WalkPoint], int]  # and how many points it gives at most


class Walker:
    """Makes walks that keep or copy one side's function on that side's manifold.

    Args:
        network: The network.
        side: The side whose manifold and function are used; it must have a manifold.
        options: Options of the merge.
    """

    def __init__(self, network: Network, side: Side, options: MergeOptions) -> None:
        assert side.manifold is not None, "a plan walks only where there are inputs"
        self._network = network
        self._side = side
        self._inputs: Inputs = side.manifold
        self._options = options
        self._targets = log_probabilities(network, side.w, side.manifold)
        self.diagonal: tuple[str, ...] = ()  # weights no layer of a measured metric covers

    def learn(self, start: Side, metric: Metric, damping: float) -> Walk:
        """Walk from the other side, in the metric that keeps it, toward this side's function."""
        rate = EUCLIDEAN_RATE if isinstance(metric, EuclideanMetric) else FunctionWalk.learning_rate
        steps = self._options.steps or FunctionWalk.steps
        walk = FunctionWalk(damping, steps, rate)
        points = walk_toward_function(start.w, metric, self.direction(walk.batch), walk)
        return points, walk.steps

    def reach(
        self,
        target: Tensor,  # (n,)
    ) -> Walk:
        """Walk from this side to exactly the target, keeping this side's function on the way."""
        gap = float((target - self._side.w).norm())
        walk = WeightWalk(
            steps=300,
            radius=max(0.1, gap / 200),
            damping=DAMPING,
        )
        return self._approach_and_close(target, walk, None), walk.steps + STRAIGHT_STEPS

    def toward(
        self,
        target: Tensor,  # (n,)
        damping: float,
    ) -> Walk:
        """Walk the paper's way: eq. (7) near the target, drift taken back, then straight to it."""
        fixed = self._options.damping
        gap = float((target - self._side.w).norm())
        walk = WeightWalk(
            steps=self._options.steps or WeightWalk.steps,
            radius=max(WeightWalk.radius, gap / 400),  # else far networks are never reached
            damping=fixed,
            least=damping,
        )
        if self._options.metric == "euclidean":  # nothing drifts back: the path is the line
            return walk_straight(self._side.w, target, EuclideanMetric(), walk.steps), walk.steps
        back = FunctionWalk(DAMPING, steps=BACK_STEPS, learning_rate=RATE)
        steps = walk.steps + back.steps + STRAIGHT_STEPS
        return self._approach_and_close(target, walk, back), steps

    def _approach_and_close(
        self,
        target: Tensor,  # (n,)
        walk: WeightWalk,
        back: FunctionWalk | None,
    ) -> Iterator[WalkPoint]:
        w = self._side.w
        correct = None if self._options.metric == "euclidean" else self._corrector()
        metric_at = self.metric_at(walk.damping or walk.least)
        for point in walk_toward_weights(w, target, metric_at, walk, correct):
            w = point.weights
            yield point
        if back is not None:
            metric = self.metric_at(DAMPING)(w)
            for point in walk_toward_function(w, metric, self.direction(back.batch), back):
                w = point.weights
                yield point
        yield from walk_straight(w, target, metric_at(w), STRAIGHT_STEPS)

    def direction(self, batch: int) -> TowardFunction:
        """Return the direction toward this side's function, from the first batch on."""
        return TowardFunction(self._network, self._targets, self._inputs, batch, self._options.seed)

    def metric_at(self, damping: float) -> Callable[[Tensor], Metric]:
        """Return what measures the metric at a point, made cheap for steps of a known damping."""
        if self._options.metric == "euclidean":
            return lambda w: EuclideanMetric()
        sample = self._inputs.sample(METRIC_INPUTS, self._options.seed)

        def measure(w: Tensor) -> Metric:
            metric = estimate_kronecker(
                self._network, w, sample.batches(500), self._options.output, self._options.seed
            )
            self.diagonal = metric.rest_names
            return metric.sharpened(damping)

        return measure

    def _corrector(self) -> Callable[[Metric, Tensor], Tensor]:
        """Return one preconditioned step back toward the function, against accumulated drift."""
        direction = self.direction(FunctionWalk(DAMPING).batch)

        def correct(metric: Metric, w: Tensor) -> Tensor:
            _, v = direction(w)
            return w + RATE * precondition(metric, v, DAMPING)

        return correct


class Probe:
    """Measures the functional change of steps on a fixed few inputs of one task.

    Args:
        network: The network.
        inputs: The task's inputs.
        output: ``"hellinger"`` or ``"logits"``.
    """

    def __init__(self, network: Network, inputs: Inputs, output: str) -> None:
        self._network = network
        self._x = inputs.batch(slice(0, PROBE_INPUTS))
        self._output = output
        self._last: tuple[Tensor, Tensor] | None = None  # a point and its logits

    def __call__(
        self,
        before: Tensor,  # (n,)
        after: Tensor,  # (n,)
    ) -> float:
        """Return mean |phi(after) - phi(before)|^2."""
        if self._last is None or self._last[0] is not before:
            self._last = (before, self._logits(before))
        logits = self._logits(after)
        change = functional_change(self._last[1], logits, self._output)
        self._last = (after, logits)
        return change

    def _logits(self, w: Tensor) -> Tensor:  # (B, m)
        return self._network.logits(w, self._x)
