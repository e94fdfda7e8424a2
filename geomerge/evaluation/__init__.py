"""Accuracy, and the pick of a point by it."""

from geomerge.renamed import old_names

__getattr__ = old_names(__name__)
