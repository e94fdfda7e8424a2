"""Reports of progress -> one JSON object per line, for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from geomerge.monitor.progress import Progress
from geomerge.monitor.tracker import Event, Tracker

__all__ = ["log_lines", "write_line"]


def write_line(stream: TextIO, event: str, **content: Any) -> None:
    """Write one JSON object with the time (UTC, ISO 8601) and what happened, and flush it.

    Args:
        stream: Where to.
        event: What happened.
        content: What there is to say of it.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(json.dumps({"time": now, "event": event, **content}), file=stream, flush=True)


@contextmanager
def log_lines(stream: TextIO) -> Iterator[Callable[[Progress], None]]:
    """Give a function that writes a line where a walk starts, at each step, and where it ends.

    Args:
        stream: Where to.

    Yields:
        To be given as ``on_progress``.
    """
    tracker = Tracker()

    def write(events: Iterable[Event]) -> None:
        for event, one in events:
            remaining = tracker.remaining(one)
            write_line(
                stream,
                event,
                walk=one.name,
                whole=one.whole,
                step=one.step,
                steps=one.steps,
                accuracy=one.now,
                remaining_seconds=None if remaining is None else round(remaining, 1),
            )

    try:
        yield lambda progress: write(tracker.report(progress))
    finally:
        write(tracker.close())
