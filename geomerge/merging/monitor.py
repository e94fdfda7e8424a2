"""Tell a watcher how a walk goes, now and then with both accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from geomerge.crossover import accuracy
from geomerge.merging.sides import Sides
from geomerge.tasks import Inputs, Split
from geomerge.walk import WalkPoint

__all__ = ["Monitor", "Progress"]

EVERY = 20  # steps between two measurements
EXAMPLES = 500


@dataclass(frozen=True)
class Progress:
    """How far a walk is.

    Attributes:
        walk: Its name, such as ``"b, damping 0.0001"``.
        step: Steps taken.
        steps: Steps it will take at most.
        a: Accuracy on a few of a's selection examples when last measured, None without them.
        b: The same for b.
    """

    walk: str
    step: int
    steps: int
    a: float | None
    b: float | None


class Monitor:
    """Watches walks.

    Args:
        sides: For the accuracies.
        on_progress: Called after each step; None watches nothing and measures nothing.
    """

    def __init__(self, sides: Sides, on_progress: Callable[[Progress], None] | None) -> None:
        self._network = sides.network
        self._call = on_progress
        self._splits = [_few(s.task.select) if s.task else None for s in (sides.a, sides.b)]

    def watch(self, walk: Iterator[WalkPoint], name: str, steps: int) -> Iterator[WalkPoint]:
        """Pass a walk on unchanged."""
        if self._call is None:
            yield from walk
            return
        found: list[float | None] = [None, None]
        for step, point in enumerate(walk, 1):
            if step % EVERY == 1:
                found = [
                    accuracy(self._network, point.weights, split) if split else None
                    for split in self._splits
                ]
            self._call(Progress(name, step, steps, *found))
            yield point


def _few(split: Split) -> Split:
    inputs = split.inputs
    few = Inputs(inputs.raw[:EXAMPLES], inputs.normalisation, inputs.device)
    return Split(few, split.labels[:EXAMPLES])
