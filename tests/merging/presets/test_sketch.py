from __future__ import annotations

from geomerge.testing import PresetLaws


class TestSketch(PresetLaws):
    name = "sketch"
