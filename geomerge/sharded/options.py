"""Options of sharded merges."""

from __future__ import annotations

from dataclasses import dataclass

from geomerge.evaluation.pick import check_pick
from geomerge.io.precision import dtype_option
from geomerge.metrics.outputs import OUTPUTS
from geomerge.options import at_least, check_options, option, positive
from geomerge.sharded.walk import Measuring
from geomerge.walks.walk import FunctionWalkOptions

__all__ = ["START_DAMPING", "ShardedOptions"]

HEADS = ("shared", "separate")
STARTS = ("mean", "kronecker-mean")
START_DAMPING = 0.1  # of the mean in the metrics, as that of a merge by sketches
REFRESH = (0, 20, 60)  # turns before which the metric is measured, as in the joint preset


@dataclass(frozen=True)
class ShardedOptions:
    """Options of a sharded merge.

    Attributes:
        head: ``"shared"`` for one head, ``"separate"`` for one of each network; None takes a shared
            head where all networks have the same classes.
        start_at: Point from which the walk starts: the mean of the weights, or their mean in the
            metrics of all networks, each measured at its own weights.
        steps: Number of steps toward each network; 0 takes the start.
        learning_rate: Learning rate of the first step; None takes one over the number of networks.
        damping: Damping mu.
        metric_inputs: Largest number of inputs of each network in a measurement.
        output: Output whose change the metric measures.
        seed: Seed of samples, random signs and the order of batches.
        pick: Rule by which a point is picked, by accuracies on the selection splits; None takes
            ``"max-min"`` where all tasks have labels, else the last point.
        interval: Turns of the walk between two checkpoints, where points are measured too.
        at_once: Number of inputs per process and pass.
        dtype: Dtype of the written weights; None takes that of all files, where it is one.
    """

    head: str | None = option(
        None, "head; default shared where the classes are the same", group="what to merge",
        choices=HEADS,
    )  # fmt: skip
    start_at: str = option("mean", "point from which the walk starts", group="walk", choices=STARTS)
    steps: int = option(
        FunctionWalkOptions.steps, "steps toward each network; 0 takes the start", group="walk",
        check=at_least(0),
    )  # fmt: skip
    learning_rate: float | None = option(
        None, "learning rate of the first step; default 1 / number of networks", group="walk",
        check=positive,
    )  # fmt: skip
    damping: float = option(1e-3, "damping mu", group="walk", check=positive)
    metric_inputs: int = option(
        Measuring.inputs, "largest number of inputs of each network in a measurement",
        group="walk", check=at_least(1),
    )  # fmt: skip
    output: str = option(
        Measuring.output, "output whose change the metric measures", group="walk", choices=OUTPUTS
    )
    seed: int = option(0, "seed of samples, random signs and batches", group="walk")
    pick: str | None = option(
        None, "pick rule: max-min, balanced, or a floor such as 'a>=0.80'", group="pick",
        check=check_pick,
    )  # fmt: skip
    interval: int = option(
        20, "turns between two checkpoints, where points are measured too", group="pick",
        check=at_least(1),
    )  # fmt: skip
    at_once: int = option(
        Measuring.at_once, "inputs per process and pass; fewer need less memory", group="machine",
        check=at_least(1), recorded=False,
    )  # fmt: skip
    dtype: str | None = dtype_option()

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: If a value cannot be used.
        """
        check_options(self)

    @property
    def measuring(self) -> Measuring:
        """Settings of measurements and passes."""
        return Measuring(self.output, self.metric_inputs, self.seed, self.at_once)

    def walk(self, networks: int) -> FunctionWalkOptions:
        """Return the settings of the walk.

        Args:
            networks: Number of networks.
        """
        rate = self.learning_rate or 1 / networks
        return FunctionWalkOptions(self.damping, self.steps, rate, refresh=REFRESH)
