"""Metrics on weight space: Euclidean, exact, Gram and Kronecker forms, and sketches."""

from geomerge.metrics.base import (
    EigenCoordinates,
    EuclideanMetric,
    MaskedMetric,
    Metric,
    combine,
)
from geomerge.metrics.exact import ExactMetric, exact_metric
from geomerge.metrics.gram import GramMetric, gram_metric
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.metrics.outputs import functional_change, output_map
from geomerge.metrics.registry import METRICS, MetricOptions, measure_metric, metric
from geomerge.metrics.sketch import Sketch, load_sketch, make_sketch, save_sketch

__all__ = [
    "METRICS",
    "EigenCoordinates",
    "EuclideanMetric",
    "ExactMetric",
    "GramMetric",
    "KroneckerMetric",
    "MaskedMetric",
    "Metric",
    "MetricOptions",
    "Sketch",
    "combine",
    "exact_metric",
    "functional_change",
    "gram_metric",
    "load_sketch",
    "make_sketch",
    "measure_metric",
    "metric",
    "output_map",
    "save_sketch",
]
