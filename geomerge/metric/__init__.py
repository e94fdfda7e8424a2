"""Network x manifold inputs -> inner product on weight space."""

from geomerge.metric.base import EuclideanMetric, Metric, Spectrum
from geomerge.metric.kronecker import KroneckerMetric
from geomerge.metric.outputs import functional_change, output_map
from geomerge.metric.sketch import Sketch, load_sketch, make_sketch, save_sketch

__all__ = [
    "EuclideanMetric",
    "KroneckerMetric",
    "Metric",
    "Sketch",
    "Spectrum",
    "functional_change",
    "load_sketch",
    "make_sketch",
    "output_map",
    "save_sketch",
]
