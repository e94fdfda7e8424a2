from __future__ import annotations

from geomerge.merging.presets.registry import PRESETS


def test_presets_are_tried_in_the_order_of_preference() -> None:
    tried = ("joint", "joint-auxiliary", "sketch", "sketches", "surrogate")
    assert PRESETS.names() == (*tried, "joint-surrogate", "paper")
    assert [cls.preference for cls in PRESETS.values()] == [0, 1, 2, 3, 4, None, None]
