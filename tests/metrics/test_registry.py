from __future__ import annotations

import pytest

from geomerge.metrics import registry
from geomerge.metrics.registry import seconds_per_input


class Clock:
    """Seconds per input of a pass, on a clock that only the number of inputs moves."""

    def __init__(self, setup: float, each: float) -> None:
        self.now, self.setup, self.each = 0.0, setup, each
        self.counts: list[int] = []

    def run(self, count: int) -> None:
        self.now += (0.0 if self.counts else self.setup) + count * self.each
        self.counts.append(count)


@pytest.mark.parametrize(
    ("setup", "each", "found", "counts"),
    [
        (0.5, 0.001, 0.001, [1, 1, 2, 4, 8, 16]),  # short passes are timed in larger batches
        (0.4, 0.5, 0.5, [1, 1]),
        (0.0, 5.0, 5.0, [1]),  # long ones once
    ],
)
def test_passes_are_timed_without_their_setup(
    monkeypatch: pytest.MonkeyPatch, setup: float, each: float, found: float, counts: list[int]
) -> None:
    clock = Clock(setup, each)
    monkeypatch.setattr(registry.time, "perf_counter", lambda: clock.now)
    assert seconds_per_input(clock.run, 16) == pytest.approx(found)
    assert clock.counts == counts
