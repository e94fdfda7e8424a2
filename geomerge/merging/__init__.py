"""Merges of networks: options, checks, presets, walks, results and their comparison."""

from geomerge.merging.analysis import Seen, look_at
from geomerge.merging.beside import ResultRow, comparison
from geomerge.merging.check import Check, check, check_merge
from geomerge.merging.curve import MergeCurvePoint, curves
from geomerge.merging.merge import merge
from geomerge.merging.options import MergeOptions
from geomerge.merging.result import MergeResult
from geomerge.renamed import old_names

__all__ = [
    "Check",
    "MergeCurvePoint",
    "MergeOptions",
    "MergeResult",
    "ResultRow",
    "Seen",
    "check",
    "check_merge",
    "comparison",
    "curves",
    "look_at",
    "merge",
]

__getattr__ = old_names(__name__)
