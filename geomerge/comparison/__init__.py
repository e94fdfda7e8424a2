"""Everything a user would try to make one network of two, measured side by side."""

from geomerge.comparison.compare import Comparison, MethodRow, compare
from geomerge.comparison.methods import METHODS
from geomerge.comparison.options import CompareOptions

__all__ = [
    "METHODS",
    "CompareOptions",
    "Comparison",
    "MethodRow",
    "compare",
]
