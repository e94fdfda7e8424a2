"""Reports of progress -> what is under way: which walks began, how far they are, which ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from geomerge.monitor.progress import Progress

__all__ = ["Event", "Tracked", "Tracker"]

_PACE = 50  # reports that tell how fast a walk is now


@dataclass(eq=False)
class Tracked:
    """A walk, or the run as a whole, as reported so far.

    Attributes:
        name: Of the walk, or of the part of the run.
        whole: Whether it is the run as a whole, in which walks begin and end.
        step: Steps taken.
        steps: Steps it will take at most.
        accuracy: Every accuracy measured so far, in [0, 1], by name.
        ended: Whether it is over.
    """

    name: str
    whole: bool
    step: int = 0
    steps: int = 0
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    ended: bool = False
    _pace: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_PACE))
    _last: Mapping[str, float] | None = None

    @property
    def now(self) -> dict[str, float]:
        """The last accuracy of each name."""
        return {name: values[-1] for name, values in self.accuracy.items()}

    def report(self, progress: Progress, when: float) -> None:
        """Take in a report that came at a time, in seconds."""
        self.name, self.step, self.steps = progress.walk, progress.step, progress.steps
        self._pace.append((when, progress.step))
        if progress.accuracy is self._last:  # the same object: not measured anew
            return
        self._last = progress.accuracy
        for name, value in progress.accuracy.items():
            self.accuracy.setdefault(name, []).append(value)

    def remaining(self, when: float) -> float | None:
        """Return the seconds left at a time, None as long as nothing tells how fast it goes.

        The parts of a run may be as different as methods are: they tell nothing of those to come.
        """
        (begun, first), (last, step) = self._pace[0], self._pace[-1]
        if self.whole or step == first:
            return None
        left = (last - begun) / (step - first) * (self.steps - step)
        return max(0.0, left - (when - last))


Event = tuple[Literal["start", "step", "end"], Tracked]


class Tracker:
    """Tells from reports which walks begin, go on and end.

    Walks follow one another: where one begins, or another part of the run, the one before is over,
    even where it was to take more steps. A walk that is reported from an earlier step again begins
    anew.

    Args:
        clock: Gives the time in seconds.

    Attributes:
        open: The run as a whole, if it is reported, and the last walk.
        ended: How many walks are over.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self.open: tuple[Tracked, ...] = ()
        self.ended = 0

    @property
    def walking(self) -> bool:
        """Whether a walk is under way."""
        return any(not one.whole and not one.ended for one in self.open)

    @property
    def seconds(self) -> float:
        """Seconds since the tracker was made."""
        return self._clock() - self._begun

    def remaining(self, one: Tracked) -> float | None:
        """Return the seconds that a walk will still take, None as long as nothing tells."""
        return one.remaining(self._clock())

    def report(self, progress: Progress) -> list[Event]:
        """Take in a report and return what it means, in order."""
        events: list[Event] = []
        one = next((t for t in self.open if _goes_on(t, progress)), None)
        other = one is None or (one.name, one.step) != (progress.walk, progress.step)
        kept = [t for t in self.open if t is one or t.whole != progress.whole]
        if progress.whole and other:  # another part, in which no walk goes yet
            kept = [t for t in kept if t.whole]
        for over in reversed([t for t in self.open if t not in kept]):
            events += self._end(over)
        if one is None:
            one = Tracked(progress.walk, progress.whole)
            kept.append(one)
            events.append(("start", one))
        one.report(progress, self._clock())
        self.open = tuple(kept)  # now, for a thread of its own may draw it
        events.append(("step", one))
        return events + (self._end(one) if one.step >= one.steps else [])

    def close(self) -> list[Event]:
        """End what is under way, the whole last, and return what that means."""
        return [event for one in reversed(self.open) for event in self._end(one)]

    def _end(self, one: Tracked) -> list[Event]:
        if one.ended:
            return []
        one.ended = True
        self.ended += not one.whole
        return [("end", one)]


def _goes_on(one: Tracked, progress: Progress) -> bool:
    """Return whether a report is of a walk, or of a run, that is under way."""
    if one.whole or progress.whole:
        return one.whole == progress.whole and one.step <= progress.step
    return one.name == progress.walk and one.step < progress.step
