"""The slow truth for tiny networks, to compare everything fast with."""

from geomerge.testing.dense import (
    dense_christoffel,
    dense_jacobian,
    dense_kronecker,
    dense_metric,
)
from geomerge.testing.geodesics import geodesic_between, geodesic_from, path_energy, path_length

__all__ = [
    "dense_christoffel",
    "dense_jacobian",
    "dense_kronecker",
    "dense_metric",
    "geodesic_between",
    "geodesic_from",
    "path_energy",
    "path_length",
]
