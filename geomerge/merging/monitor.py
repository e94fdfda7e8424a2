"""Tell a watcher how a walk goes, now and then with the accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from geomerge.crossover import accuracy
from geomerge.merging.sides import Sides
from geomerge.walk import WalkPoint

__all__ = ["Monitor", "Progress"]

EVERY = 20  # steps between two measurements
EXAMPLES = 500


@dataclass(frozen=True)
class Progress:
    """How far a walk is, or a run in which walks follow one another.

    Attributes:
        walk: Its name, such as ``"toward a, damping 0.0001"``.
        step: Steps taken.
        steps: Steps it will take at most.
        accuracy: By network, on a few of its selection examples when last measured.
        whole: Whether it is the run: its steps are parts, such as methods, in which walks go, and
            ``walk`` names the one that goes now.
    """

    walk: str
    step: int
    steps: int
    accuracy: Mapping[str, float]
    whole: bool = False


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
