"""Everything a user would try to make one network of two, measured side by side."""

from geomerge.comparing.compare import Comparison, Row, compare
from geomerge.comparing.methods import METHODS
from geomerge.comparing.options import CompareOptions

__all__ = ["METHODS", "CompareOptions", "Comparison", "Row", "compare"]
