"""The recipes: compositions of metric, direction, steps, path and crossover."""

from geomerge.merging.compare import CurvePoint, Row, comparison, curves
from geomerge.merging.merge import Merge, merge
from geomerge.merging.options import MergeOptions

__all__ = ["CurvePoint", "Merge", "MergeOptions", "Row", "comparison", "curves", "merge"]
