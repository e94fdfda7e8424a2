"""Accuracy, and the pick of a point by it."""
