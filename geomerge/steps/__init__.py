"""Metric x direction -> tangent."""

from geomerge.steps.trust_region import Step, damped_step, precondition, trust_region_step

__all__ = ["Step", "damped_step", "precondition", "trust_region_step"]
