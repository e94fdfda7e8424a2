"""The metric of several functions at once, measured at a point of a walk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geomerge.data import Inputs, as_they_are
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side
from geomerge.metrics import METRICS, Metric, MetricOptions, combine, measure_metric
from geomerge.networks.batches import interleave

__all__ = ["manifold_of", "measured_inputs", "metric_of_all"]


def manifold_of(side: Side) -> Inputs:
    """Return a side's manifold, where the plan knows that there is one."""
    assert side.manifold is not None, "a plan walks only where there are inputs"
    return side.manifold


def measured_inputs(sides: Sequence[Side], options: MergeOptions) -> list[Inputs]:
    """Return the inputs of each side on which its metric is measured."""
    count = METRICS[options.metric].inputs
    return [manifold_of(side).sample(count, options.seed) for side in sides]


def metric_of_all(
    sides: Sequence[Side],
    samples: Sequence[Inputs],
    w: Tensor,  # (n,)
    options: MergeOptions,
) -> Metric:
    """Return the mean of the metrics of all sides.

    Args:
        sides: Whose functions.
        samples: Inputs of each.
        w: Where.
        options: Which metric, of which outputs.

    Raises:
        OptionError: If metrics that keep no factors would have to be added.
    """
    chosen, seed = MetricOptions(options.metric, options.output), options.seed
    columns = {str(side.network.columns) for side in sides}
    shapes = {x.shape for x in samples}
    if len(columns) == 1 and len(shapes) == 1:
        # One measurement on the inputs of all: its factors are means over them.
        return measure_metric(sides[0].network, w, _pooled(samples), chosen, seed=seed)
    pairs = zip(sides, samples, strict=True)
    metrics = [measure_metric(s.network, w, x, chosen, seed=seed) for s, x in pairs]
    return combine(metrics, mean=True)


def _pooled(samples: Sequence[Inputs]) -> Inputs:
    """Return all inputs as one, each normalised in its own way, in turns."""
    if len(samples) == 1:
        return samples[0]
    shortest = min(len(s) for s in samples)
    mixed = interleave([s.batch(slice(0, shortest)) for s in samples])
    return as_they_are(mixed, samples[0].device)
