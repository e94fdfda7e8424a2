"""The recipes: compositions of metric, direction, steps, path and crossover."""

from geomerge.merging.compare import ResultRow, comparison
from geomerge.merging.curve import MergeCurvePoint, curves
from geomerge.merging.merge import Merge, merge
from geomerge.merging.options import MergeOptions
from geomerge.merging.seen import Seen, look_at
from geomerge.renamed import old_names

__all__ = [
    "Merge",
    "MergeCurvePoint",
    "MergeOptions",
    "ResultRow",
    "Seen",
    "comparison",
    "curves",
    "look_at",
    "merge",
]

__getattr__ = old_names(__name__)
