from __future__ import annotations

from geomerge.testing import PresetLaws


class TestJoint(PresetLaws):
    name = "joint"
