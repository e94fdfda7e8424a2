"""Tell a watcher how a walk goes, now and then with the accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from geomerge.evaluation.accuracy import accuracy
from geomerge.merging.sides import Sides
from geomerge.monitor.progress import Progress
from geomerge.walks.walk import WalkPoint

__all__ = ["Monitor"]

EVERY = 20  # steps between two measurements
EXAMPLES = 500


class Monitor:
    """Watches walks.

    Args:
        sides: For the accuracies.
        on_progress: Called after each step; None watches nothing and measures nothing.
    """

    def __init__(self, sides: Sides, on_progress: Callable[[Progress], None] | None) -> None:
        self._call = on_progress
        self._few = [(s.name, s.network, s.task.select.first(EXAMPLES)) for s in sides if s.task]

    def watch(
        self, walk: Iterator[WalkPoint], name: str, steps: int, taken: int = 0
    ) -> Iterator[WalkPoint]:
        """Pass a walk on unchanged, or what is left of it after some steps."""
        if self._call is None:
            yield from walk
            return
        found: dict[str, float] = {}
        for step, point in enumerate(walk, taken + 1):
            if not found or step % EVERY == 1:
                found = {name: accuracy(net, point.weights, few) for name, net, few in self._few}
            self._call(Progress(name, step, steps, found))
            yield point
