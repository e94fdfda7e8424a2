"""Accuracies, functional changes and pick rules of points in weight space."""

from geomerge.renamed import old_names

__getattr__ = old_names(__name__)
