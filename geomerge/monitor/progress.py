"""Progress of walks and runs: single reports, and their sequence as walks that begin and end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Event", "OnProgress", "Progress", "Tracked", "Tracker"]

_PACE = 50  # reports over which the speed of a walk is measured


@dataclass(frozen=True)
class Progress:
    """Progress of a walk, or of a run in which walks follow one another.

    Attributes:
        walk: Name of the walk, such as ``"toward a, damping 0.0001"``.
        step: Number of steps taken.
        steps: Number of steps at most.
        accuracy: Accuracies on a few selection examples when last measured, by network.
        whole: Whether this reports a whole run rather than one walk: its steps are parts, such as
            methods, and ``walk`` names the part that is under way.
    """

    walk: str
    step: int
    steps: int
    accuracy: Mapping[str, float]
    whole: bool = False


OnProgress: TypeAlias = Callable[[Progress], None]


@dataclass(eq=False)
class Tracked:
    """A walk, or the run as a whole, as reported so far.

    Attributes:
        name: Name of the walk, or of the part of the run.
        whole: Whether it is the run as a whole, in which walks begin and end.
        step: Number of steps taken.
        steps: Number of steps at most.
        accuracy: Every accuracy measured so far, in [0, 1], by network.
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
        """Last accuracy of each network."""
        return {name: values[-1] for name, values in self.accuracy.items()}

    def report(self, progress: Progress, when: float) -> None:
        """Add a report that came at a time, in seconds."""
        self.name, self.step, self.steps = progress.walk, progress.step, progress.steps
        self._pace.append((when, progress.step))
        if progress.accuracy is self._last:  # the same object: not measured again
            return
        self._last = progress.accuracy
        for name, value in progress.accuracy.items():
            self.accuracy.setdefault(name, []).append(value)

    def remaining(self, when: float) -> float | None:
        """Return the seconds left at a time, None where the speed is not known yet.

        It never is for a whole run, whose parts may be as different as methods are.
        """
        (begun, first), (last, step) = self._pace[0], self._pace[-1]
        if self.whole or step == first:
            return None
        left = (last - begun) / (step - first) * (self.steps - step)
        return max(0.0, left - (when - last))


Event: TypeAlias = tuple[Literal["start", "step", "end"], Tracked]


class Tracker:
    """Sequence of walks, derived from reports.

    Walks follow one another: where one begins, or another part of the run, the one before is over,
    even if it had steps left. A report of an earlier step begins the same walk a second time.

    Args:
        clock: Function that returns the time in seconds.

    Attributes:
        open: The run as a whole, if it is reported, and the last walk.
        ended: Number of walks that are over.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self.open: tuple[Tracked, ...] = ()
        self.ended = 0

    @property
    def walking(self) -> bool:
        """Whether a walk is under way."""
        return any(not tracked.whole and not tracked.ended for tracked in self.open)

    @property
    def seconds(self) -> float:
        """Seconds since the tracker was made."""
        return self._clock() - self._begun

    def remaining(self, tracked: Tracked) -> float | None:
        """Return the seconds left of a walk, None where its speed is not known yet."""
        return tracked.remaining(self._clock())

    def report(self, progress: Progress) -> list[Event]:
        """Add a report and return its events, in order."""
        events: list[Event] = []
        current = next((t for t in self.open if _continues(t, progress)), None)
        other = current is None or (current.name, current.step) != (progress.walk, progress.step)
        still = [t for t in self.open if t is current or t.whole != progress.whole]
        if progress.whole and other:  # another part, without a walk so far
            still = [t for t in still if t.whole]
        for over in reversed([t for t in self.open if t not in still]):
            events += self._end(over)
        if current is None:
            current = Tracked(progress.walk, progress.whole)
            still.append(current)
            events.append(("start", current))
        current.report(progress, self._clock())
        self.open = tuple(still)  # in one assignment: another thread may draw it
        events.append(("step", current))
        return events + (self._end(current) if current.step >= current.steps else [])

    def close(self) -> list[Event]:
        """End all that is under way, the whole last, and return the events."""
        return [event for tracked in reversed(self.open) for event in self._end(tracked)]

    def _end(self, tracked: Tracked) -> list[Event]:
        if tracked.ended:
            return []
        tracked.ended = True
        self.ended += not tracked.whole
        return [("end", tracked)]


def _continues(tracked: Tracked, progress: Progress) -> bool:
    """Return whether a report is of a walk, or of a run, that is under way."""
    if tracked.whole or progress.whole:
        return tracked.whole == progress.whole and tracked.step <= progress.step
    return tracked.name == progress.walk and tracked.step < progress.step
