"""Reports of progress -> a board of bars, in a terminal or in a notebook."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from itertools import pairwise
from statistics import fmean

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from geomerge.monitor.progress import Progress
from geomerge.monitor.tracker import Tracked, Tracker

__all__ = ["Board", "progress", "sparkline"]

_PER_SECOND = 4  # times that the board is drawn
_NAME = 20  # most characters of an accuracy's name
_WIDTH = 100  # most characters of a line
_BLOCKS = 40  # most blocks of a sparkline
_SPANS = 60  # characters of a line from which the range of an accuracy is written out
_SPREAD = 0.1  # least accuracy between the lowest block and the highest


@contextmanager
def progress() -> Iterator[Callable[[Progress], None] | None]:
    """Give a function that shows how walks go: on a terminal's error stream, or in a notebook.

    A bar for the walk under way, with its steps and the time that is left of it, and for each task
    the accuracy now and all those so far as a sparkline. It is gone when the block ends, however
    it ends.

    Yields:
        To be given as ``on_progress``; None where nobody looks, so that nothing is measured for it.
    """
    tracker = Tracker()
    board = Board(tracker)
    console = Console(stderr=True)
    shown: AbstractContextManager[Callable[[], None]]
    if console.is_jupyter:
        shown = _in_notebook(board)
    elif sys.stderr.isatty():
        shown = _in_terminal(board, console)
    else:
        yield None
        return
    with shown as draw:

        def show(report: Progress) -> None:
            tracker.report(report)
            draw()

        yield show


@contextmanager
def _in_terminal(board: Board, console: Console) -> Iterator[Callable[[], None]]:
    live = Live(
        board,
        console=console,
        refresh_per_second=_PER_SECOND,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # a file gets what is printed into it
    )
    with live:
        yield lambda: None  # a thread of its own draws, while nothing is reported too


@contextmanager
def _in_notebook(board: Board) -> Iterator[Callable[[], None]]:
    """Draw into one output of the cell, which needs no widgets and leaves nothing in the file."""
    display = importlib.import_module("IPython.display")
    handle = display.display(board, display_id=True)
    drawn = time.monotonic()

    def draw() -> None:
        nonlocal drawn
        if time.monotonic() - drawn > 1 / _PER_SECOND:
            handle.update(board)
            drawn = time.monotonic()

    try:
        yield draw
    finally:
        handle.update(display.HTML(""))


class Board(JupyterMixin):
    """What is under way, as rich draws it; drawn again, it is as things are then.

    Args:
        tracker: Told of all reports.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw a bar for each thing under way, and a line that shows that time goes on."""
        options = options.update_width(min(_WIDTH, options.max_width))
        for one in self._tracker.open:
            yield from console.render(self._bar(one, options.max_width), options)
            if one.accuracy:
                yield _accuracies(one, options)
        ended = self._tracker.ended
        said = [f"{_clock(self._tracker.seconds)} so far"]
        said += [f"{ended} finished"] if ended else []
        said += ["measuring or writing"] if ended and not self._tracker.walking else []
        yield Text(", ".join(said), style="dim", no_wrap=True, overflow="ellipsis")

    def _bar(self, one: Tracked, width: int) -> RenderableType:
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True, overflow="ellipsis", max_width=width // 2)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_column(no_wrap=True)
        seconds = self._tracker.remaining(one)
        left = "" if seconds is None or one.ended else f"{_clock(seconds)} left"
        bar = ProgressBar(total=max(one.steps, 1), completed=one.step)
        row.add_row(one.name, bar, f"{one.step}/{one.steps}", left)
        return row


def _accuracies(one: Tracked, options: ConsoleOptions) -> RenderableType:
    """Return a row for each task; all sparklines have one scale, so that they can be compared."""
    # Copies: more may be measured while a thread of its own draws.
    rows = [(name, list(values)) for name, values in list(one.accuracy.items())]
    found = [value for _, values in rows for value in values]
    low = min(min(found), max(found) - _SPREAD)
    wide = options.max_width >= _SPANS
    longest = min(_NAME, options.max_width // 3, max(len(name) for name, _ in rows))
    width = max(1, min(_BLOCKS, options.max_width - longest - (30 if wide else 14)))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=longest + 2)
    for _ in range(3):
        table.add_column(no_wrap=True)
    for name, values in rows:
        blocks = "" if options.ascii_only else sparkline(values, low, max(found), width)
        span = f"{100 * min(values):.1f} to {100 * max(values):.1f}" if wide else ""
        table.add_row(f"  {name}", f"{100 * values[-1]:.1f} %", blocks, Text(span, style="dim"))
    return table


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")


_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(
    values: Sequence[float], low: float = 0.0, high: float = 1.0, width: int | None = None
) -> str:
    """Return one block for each number, or for the mean of neighbours where they are too many.

    Args:
        values: The numbers.
        low: What the lowest block stands for.
        high: What the highest stands for; as high as ``low``, every block is the lowest.
        width: Most blocks; None takes as many as there are numbers.
    """
    count = len(values) if width is None else min(width, len(values))
    cuts = [len(values) * k // count for k in range(count + 1)] if count else []
    shares = (
        (fmean(values[start:stop]) - low) / (high - low) if high > low else 0.0
        for start, stop in pairwise(cuts)
    )
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round(top * min(max(share, 0.0), 1.0))] for share in shares)
