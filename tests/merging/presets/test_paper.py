from __future__ import annotations

from geomerge.testing import PresetLaws


class TestPaper(PresetLaws):
    name = "paper"
