"""What all commands share: exit codes, messages, the progress bar, the end of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from geomerge.merging.monitor import Progress

USER_ERROR = 2


def fail(message: str) -> int:
    """Print one sentence to the error stream and return the exit code of a user's mistake."""
    print(f"geomerge: {message}", file=sys.stderr)
    return USER_ERROR


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows walks as bars with current accuracies.

    Args:
        quiet: Show nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
    )
    rows: dict[str, Any] = {}
    with bars:

        def show(progress: Progress) -> None:
            now = "  ".join(
                f"{side} {100 * value:.1f} %" for side, value in progress.accuracy.items()
            )
            if progress.walk not in rows:
                rows[progress.walk] = bars.add_task(progress.walk, total=progress.steps, now=now)
            bars.update(rows[progress.walk], completed=progress.step, now=now)

        yield show
        for row in bars.tasks:
            bars.update(row.id, total=row.completed)


def finish(
    folder: Path,
    report: dict[str, Any],
    before: bool,
    show: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Print what a run found, and where it is.

    Args:
        folder: Where.
        report: The content of its ``report.json``.
        before: Whether the run had been finished before.
        show: Prints the report for people; None prints it as JSON and nothing else.
    """
    if show is None:
        print(json.dumps(report, indent=1))
        return
    show(report)
    print(f"{folder} was finished before; nothing changed" if before else f"written to {folder}")


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
