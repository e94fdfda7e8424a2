"""Alignment of networks by permutations of units, and rotations, which preserve functions."""

from geomerge.alignment.align import METHODS, Alignment, align, align_weights, permuted_metric
from geomerge.alignment.rotations import ROTATIONS, rotate_weights
from geomerge.alignment.streams import find_stream

__all__ = [
    "METHODS",
    "ROTATIONS",
    "Alignment",
    "align",
    "align_weights",
    "find_stream",
    "permuted_metric",
    "rotate_weights",
]
