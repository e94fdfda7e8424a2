"""What all commands share: exit codes, messages, who watches, the end of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from geomerge.monitor.progress import Progress

USER_ERROR = 2
INTERRUPTED = 130  # 128 + the number of SIGINT, as shells have it


def fail(message: str, log_json: bool = False) -> int:
    """Say one sentence on the error stream and return the exit code of a user's mistake."""
    _say("failed", message, log_json)
    return USER_ERROR


@contextmanager
def watched(log_json: bool, resumes: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """Give what shows how walks go; where the block is interrupted, say so and end.

    Args:
        log_json: Write a line for every event instead of bars.
        resumes: Whether the same command goes on where the block was interrupted.
    """
    from geomerge.monitor import log_lines, progress

    try:
        with log_lines(sys.stderr) if log_json else progress() as show:
            yield show
    except KeyboardInterrupt:
        then = "goes on where this one stopped" if resumes else "begins anew"
        _say("interrupted", f"interrupted; the same command {then}", log_json)
        raise SystemExit(INTERRUPTED) from None


def _say(event: str, message: str, log_json: bool) -> None:
    """Print one sentence to the error stream, or the same as an event."""
    if log_json:
        from geomerge.monitor import write_line

        write_line(sys.stderr, event, message=message)
    else:
        print(f"geomerge: {message}", file=sys.stderr)


def finish(
    folder: Path,
    report: dict[str, Any],
    before: bool,
    show: Callable[[dict[str, Any]], None] | None,
    log_json: bool,
) -> None:
    """Print what a run found, and where it is.

    Args:
        folder: Where.
        report: The content of its ``report.json``.
        before: Whether the run had been finished before.
        show: Prints the report for people; None prints it as JSON and nothing else.
        log_json: Whether the last event goes to the error stream.
    """
    tell_finished(log_json, folder=str(folder), before=before)
    if show is None:
        print(json.dumps(report, indent=1))
        return
    show(report)
    print(f"{folder} was finished before; nothing changed" if before else f"written to {folder}")


def tell_finished(log_json: bool, **content: Any) -> None:
    """Write the last event of a run, if events are written at all."""
    if log_json:
        from geomerge.monitor import write_line

        write_line(sys.stderr, "finished", **content)


def plain_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    bold: Callable[[str], bool],
    words: Sequence[str] = ("method",),
) -> Table:
    """Return a table with little space between its columns.

    Args:
        title: Above it.
        headings: Of the columns.
        rows: Their cells.
        bold: Whether a row stands out, by its first cell.
        words: Headings of the columns that hold no numbers.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells, style="bold" if bold(cells[0]) else None)
    return table


def percent(value: float | None) -> str:
    """Return an accuracy as it stands in a table."""
    return "-" if value is None else f"{100 * value:.2f}"
