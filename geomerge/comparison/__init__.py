"""Comparison of merging methods in one table."""

from geomerge.comparison.compare import Comparison, MethodRow, compare
from geomerge.comparison.options import CompareOptions
from geomerge.comparison.registry import METHODS

__all__ = [
    "METHODS",
    "CompareOptions",
    "Comparison",
    "MethodRow",
    "compare",
]
