"""Alignment of networks: permutations of units that leave the functions unchanged."""

from geomerge.alignment.align import METHODS, Alignment, align, align_weights, permuted_metric

__all__ = ["METHODS", "Alignment", "align", "align_weights", "permuted_metric"]
