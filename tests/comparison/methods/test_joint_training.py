"""Joint training on both tasks."""

from __future__ import annotations

from geomerge.testing.method_laws import MethodLaws


class TestJointTraining(MethodLaws):
    name = "joint-training"
    fixed_on_twins = False
