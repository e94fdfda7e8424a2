"""Alignment of networks: units of one put in the order of another's, its function unchanged."""

from geomerge.alignment.align import METHODS, Alignment, align, align_weights, permuted_metric

__all__ = ["METHODS", "Alignment", "align", "align_weights", "permuted_metric"]
