"""Two-teacher distillation."""

from __future__ import annotations

from geomerge.testing.method_laws import MethodLaws


class TestDistillation(MethodLaws):
    name = "distillation"
