"""Alignment of networks by function-preserving permutations of units."""

from geomerge.alignment.align import METHODS, Alignment, align, align_weights, permuted_metric

__all__ = ["METHODS", "Alignment", "align", "align_weights", "permuted_metric"]
