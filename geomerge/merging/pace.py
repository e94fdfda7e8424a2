"""Pace of a merge: seconds of a network's passes from a few inputs, and of all walks from those.

Where a merge is small enough, its parts are run for a moment instead: :mod:`geomerge.merging.cost`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from geomerge.data import Inputs
from geomerge.evaluation.drift import probe_inputs
from geomerge.expert import Expert
from geomerge.merging.joint_training import joint_samples
from geomerge.merging.presets.base import Preset, Stage
from geomerge.merging.sizes import pass_bytes
from geomerge.merging.stages import STATISTICS
from geomerge.metrics.registry import BATCH, MeasuringPace, MetricOptions, seconds_per_input
from geomerge.walks.walk import FunctionWalkOptions

__all__ = ["MergePace", "pace_of", "training_pace"]

_CORRECTED = 3  # products with the metric in a step of a leg that closes a path
_TIMED_PASS = 4 * 10**8  # bytes of a timed pass's activations at most


def _known_inputs(expert: Expert) -> Inputs | None:
    """Return inputs that an expert brings: for walks, else of its selection split."""
    if expert.inputs is not None:
        return expert.inputs
    return None if expert.task is None else expert.task.select.inputs


def training_pace(experts: Iterable[Expert]) -> float:
    """Return the seconds per input of a pass forwards and backwards; 0 without inputs.

    Args:
        experts: Experts of one network, which passes some inputs of each shape; the longest passes
            count.
    """
    known = [(expert, x) for expert in experts if (x := _known_inputs(expert)) is not None]
    shapes = {str(x.shape): (expert, x) for expert, x in known}
    return max((_training_pace(expert, x) for expert, x in shapes.values()), default=0.0)


def _training_pace(expert: Expert, x: Inputs) -> float:
    def run(count: int) -> None:
        batch = x.batch(slice(0, count))
        expert.network.gradient(expert.weights, batch, lambda logits: logits.square().sum())

    return seconds_per_input(run, min(len(x), FunctionWalkOptions.batch, _timed(expert)))


def _timed(expert: Expert) -> int:
    """Return the largest number of inputs in a timed pass."""
    known = replace(expert, inputs=_known_inputs(expert))
    return max(1, _TIMED_PASS // max(pass_bytes([known]), 1))


def _measuring_pace(expert: Expert, options: MetricOptions) -> MeasuringPace:
    """Return the seconds of measuring a metric.

    Args:
        expert: Expert with inputs.
        options: Choice of the metric.
    """
    kind, x = options.kind, expert.inputs
    if x is None or not kind.needs_inputs:
        return MeasuringPace(0.0, 0.0)
    if kind.pace is not None:
        sample = x.first(x.enough(kind.inputs))
        network, most = expert.network, min(_timed(expert), expert.network.max_batch or BATCH)
        network = network.limited(most, network.max_moments)
        return kind.pace(network, expert.weights, sample, options.output)
    measure = partial(kind.measure, expert.network, expert.weights)
    each = seconds_per_input(
        lambda count: measure(x.first(count), options.output, 0), min(len(x), kind.inputs)
    )
    return MeasuringPace(each, 0.0)


@dataclass(frozen=True)
class MergePace:
    """Seconds of the parts of a merge.

    Attributes:
        forward: Seconds of a forward pass, per input.
        training: Seconds of a forward and backward pass, per input.
        measuring: Seconds of the metric's measurements.
        probes: Number of inputs on which the change of a step is measured.
    """

    forward: float
    training: float
    measuring: MeasuringPace
    probes: int

    def measured(self, times: int, inputs: int) -> float:
        """Return the seconds of measurements of the metric.

        Args:
            times: Their number.
            inputs: Number of their inputs, all together.
        """
        own = self.measuring
        return times * own.besides + inputs * (own.each + own.one_by_one_seconds)

    def step(self, count: int, probed: float, products: int = 1) -> float:
        """Return the seconds of a step.

        Args:
            count: Number of available inputs.
            probed: Seconds of measuring its change.
            products: Number of products with the metric.
        """
        batch = min(FunctionWalkOptions.batch, count)
        return batch * self.training + probed + products * self.measuring.product

    def probe(self, expert: Expert) -> float:
        """Return the seconds of measuring the change of an expert's function in a step.

        Args:
            expert: Expert with inputs, or with a task, whose selection split is passed.
        """
        known = expert.inputs if expert.task is None else expert.task.select.inputs
        return 0.0 if known is None else min(self.probes, len(known)) * self.forward

    def stage(self, preset: Preset, stage: Stage) -> float:
        """Return the seconds of the walks of a stage.

        Args:
            preset: Preset that walks.
            stage: One of its stages.
        """
        sizes = [len(e.inputs) for e in (stage.learned or stage.kept) if e.inputs is not None]
        probed = self.probe(stage.kept[0]) if len(stage.kept) == 1 else 0.0
        step = self.step(max(sizes, default=0), probed)
        steps = preset.steps_of(stage) * len(stage.candidates)
        return self.measured(*preset.measuring(stage)) + steps * step

    def closing(self, preset: Preset) -> float:
        """Return the seconds of the legs that close a path.

        Args:
            preset: Preset that walks.
        """
        total, middle = 0.0, preset.space.middle()
        for expert in preset.open_ends:
            count = len(expert.inputs) if expert.inputs is not None else 0
            steps = preset.closing_steps(expert, middle)
            times = 0 if preset.kind.isotropic else preset.closing_measurements(expert, steps)
            total += self.measured(times, times * min(preset.kind.inputs, count))
            probed = self.probe(expert)
            if preset.straight_legs:
                total += steps * probed
            else:
                total += steps * self.step(count, probed, _CORRECTED)
        return total

    def score(self, preset: Preset) -> float:
        """Return the seconds of measuring one point for a pick, with its running statistics.

        Args:
            preset: Preset that walks.
        """
        space = preset.space
        known = [expert.task.select for expert in space if expert.task is not None]
        count = sum(len(split.labels) + min(self.probes, len(split.labels)) for split in known)
        if space.bn == "re-estimate":
            count += sum(min(STATISTICS, len(e.inputs)) for e in space if e.inputs is not None)
        return count * self.forward

    def tested(self, preset: Preset) -> float:
        """Return the seconds of the accuracies on test splits.

        Args:
            preset: Preset that walks.
        """
        tasks = [expert.task for expert in preset.space if expert.task is not None]
        return self.forward * sum(len(task.test.labels) for task in tasks)

    def joint_training(self, preset: Preset) -> float:
        """Return the seconds of the joint training that a merge is compared with.

        Args:
            preset: Preset that walks.
        """
        space = preset.space
        if space.head != "shared" or any(expert.task is None for expert in space):
            return 0.0
        return self.training * joint_samples(space, preset.options.walk.steps)


def pace_of(preset: Preset, training: float) -> MergePace:
    """Measure the pace of a merge's network on a few inputs.

    Args:
        preset: Preset of the merge.
        training: Seconds per input of a pass forwards and backwards.
    """
    walked = [expert for expert in preset.space if expert.inputs is not None]
    expert = (walked or list(preset.space))[0]
    x = _known_inputs(expert)
    assert x is not None, "presets walk only where there are inputs"

    def run(count: int) -> Tensor:
        return expert.network.logits(expert.weights, x.batch(slice(0, count)))

    probes = probe_inputs(expert.network)
    forward = seconds_per_input(run, min(len(x), probes))
    return MergePace(forward, training, _measuring_pace(expert, preset.options.measure), probes)
