"""Units of one network put in the order of another's: its function stays, weights come nearer."""

from geomerge.alignment.align import METHODS, Alignment, align, permuted_metric

__all__ = ["METHODS", "Alignment", "align", "permuted_metric"]
