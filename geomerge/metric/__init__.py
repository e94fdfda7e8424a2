"""Network x manifold inputs -> inner product on weight space."""

from geomerge.metric.base import EuclideanMetric, Metric, Spectrum, lower
from geomerge.metric.combine import combine
from geomerge.metric.exact import ExactMetric, exact_metric
from geomerge.metric.gram import GramMetric, gram_metric
from geomerge.metric.kronecker import KroneckerMetric
from geomerge.metric.masked import MaskedMetric
from geomerge.metric.measure import METRICS, measure_metric
from geomerge.metric.outputs import functional_change, output_map
from geomerge.metric.sketch import Sketch, load_sketch, make_sketch, save_sketch

__all__ = [
    "METRICS",
    "EuclideanMetric",
    "ExactMetric",
    "GramMetric",
    "KroneckerMetric",
    "MaskedMetric",
    "Metric",
    "Sketch",
    "Spectrum",
    "combine",
    "exact_metric",
    "functional_change",
    "gram_metric",
    "load_sketch",
    "lower",
    "make_sketch",
    "measure_metric",
    "output_map",
    "save_sketch",
]
