"""Progress as JSON lines, one object for each event."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from geomerge.monitor.progress import Event, OnProgress, Tracker

__all__ = ["log_lines", "write_line"]


def write_line(stream: TextIO, event: str, **content: Any) -> None:
    """Write one JSON object with the time (UTC, ISO 8601) and the event, and flush it.

    Args:
        stream: Stream that the line is written to.
        event: Name of the event.
        content: More keys and values of the object.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(json.dumps({"time": now, "event": event, **content}), file=stream, flush=True)


@contextmanager
def log_lines(stream: TextIO) -> Iterator[OnProgress]:
    """Give a function that writes a line where a walk starts, at each step, and where it ends.

    Args:
        stream: Stream that the lines are written to.

    Yields:
        The function, to be given as ``progress``.
    """
    tracker = Tracker()

    def write(events: Iterable[Event]) -> None:
        for event, tracked in events:
            remaining = tracker.remaining(tracked)
            write_line(
                stream,
                event,
                walk=tracked.name,
                whole=tracked.whole,
                step=tracked.step,
                steps=tracked.steps,
                accuracy=tracked.now,
                remaining_seconds=None if remaining is None else round(remaining, 1),
            )

    try:
        yield lambda progress: write(tracker.report(progress))
    finally:
        write(tracker.close())
