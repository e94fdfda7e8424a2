"""Reference implementations for tiny networks, and laws of metrics, methods and presets."""

from geomerge.testing.dense import (
    dense_christoffel,
    dense_jacobian,
    dense_kronecker,
    dense_metric,
)
from geomerge.testing.geodesics import geodesic_between, geodesic_from, path_energy, path_length
from geomerge.testing.method_laws import MethodLaws, method_case
from geomerge.testing.metric_laws import MetricLaws
from geomerge.testing.preset_laws import PresetLaws

__all__ = [
    "MethodLaws",
    "MetricLaws",
    "PresetLaws",
    "dense_christoffel",
    "dense_jacobian",
    "dense_kronecker",
    "dense_metric",
    "geodesic_between",
    "geodesic_from",
    "method_case",
    "path_energy",
    "path_length",
]
