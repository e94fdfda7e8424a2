"""Metric of several experts at once, measured at points of a walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from geomerge.data import Inputs, as_they_are
from geomerge.expert import Expert
from geomerge.metrics import METRICS, Metric, MetricOptions, combine, measure_metric
from geomerge.networks.batches import interleave

__all__ = ["inputs_of", "measured_together", "metric_of"]


def inputs_of(expert: Expert) -> Inputs:
    """Return the inputs of an expert that has some."""
    assert expert.inputs is not None, "presets walk only where there are inputs"
    return expert.inputs


def measured_together(experts: Sequence[Expert]) -> bool:
    """Return whether experts have outputs and inputs alike, so that their metric is measured once.

    Args:
        experts: Experts with inputs.
    """
    columns = {str(expert.network.columns) for expert in experts}
    shapes = {str(inputs_of(expert).shape) for expert in experts}
    return len(columns) == len(shapes) == 1


def metric_of(
    experts: Sequence[Expert], options: MetricOptions, seed: int
) -> Callable[[Tensor], Metric]:
    """Return the function of a point that measures the mean of the metrics of experts there.

    Args:
        experts: Experts with inputs.
        options: Choice of the metric.
        seed: Seed of the samples of their inputs, and of the metric's draws.
    """
    count = METRICS[options.metric].inputs
    given = [inputs_of(expert) for expert in experts]
    samples = [x.sample(x.enough(count), seed) for x in given]
    # One measurement on the inputs of all: its factors are means over them.
    pooled = _pooled(samples) if measured_together(experts) else None

    def measure(w: Tensor) -> Metric:
        if pooled is not None:
            return measure_metric(experts[0].network, w, pooled, options, seed=seed)
        metrics = [
            measure_metric(expert.network, w, x, options, seed=seed)
            for expert, x in zip(experts, samples, strict=True)
        ]
        return combine(metrics, mean=True)

    return measure


def _pooled(samples: Sequence[Inputs]) -> Inputs:
    """Return all inputs as one, each normalised in its own way, in turns."""
    if len(samples) == 1:
        return samples[0]
    shortest = min(len(x) for x in samples)
    mixed = interleave([x.batch(slice(0, shortest)) for x in samples])
    mixed_inputs = as_they_are(mixed, samples[0].device, samples[0].dtype)
    return replace(mixed_inputs, at_once=samples[0].at_once)
