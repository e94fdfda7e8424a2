"""Progress bars with sparklines of accuracies, in a terminal or in a notebook."""

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

from geomerge.monitor.progress import OnProgress, Progress, Tracked, Tracker

__all__ = ["Board", "progress", "sparkline"]

_PER_SECOND = 4  # drawings of the board
_NAME = 20  # most characters of an accuracy's name
_WIDTH = 100  # most characters of a line
_BLOCKS = 40  # most blocks of a sparkline
_SPANS = 60  # characters of a line from which the range of an accuracy is written out
_SPREAD = 0.1  # least accuracy between the lowest block and the highest


@contextmanager
def progress() -> Iterator[OnProgress | None]:
    """Give a function that shows progress, on a terminal's error stream or in a notebook.

    It draws a bar for the walk under way, with its steps and the time left, and for each task the
    last accuracy and a sparkline of all of them. The drawing is removed when the block ends,
    however it ends.

    Yields:
        The function, to be given as ``progress``; None without a terminal or a notebook, so that
        no accuracies are measured for it.
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
    try:
        with live:
            yield lambda: None  # rich draws in a thread of its own, between reports too
    finally:
        live.stop()  # an interruption while it starts would leave its thread drawing


@contextmanager
def _in_notebook(board: Board) -> Iterator[Callable[[], None]]:
    """Draw into one output of the cell, without widgets and with nothing left in the notebook."""
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
    """Bars of everything under way, as rich draws them; each drawing shows the current state.

    Args:
        tracker: Tracker that gets all reports.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw a bar for the run and for the walk under way, and a line with the time so far."""
        options = options.update_width(min(_WIDTH, options.max_width))
        for tracked in self._tracker.open:
            yield from console.render(self._bar(tracked, options.max_width), options)
            if tracked.accuracy:
                yield _accuracies(tracked, options)
        ended = self._tracker.ended
        said = [f"{_clock(self._tracker.seconds)} so far"]
        said += [f"{ended} finished"] if ended else []
        said += ["measuring or writing"] if ended and not self._tracker.walking else []
        yield Text(", ".join(said), style="dim", no_wrap=True, overflow="ellipsis")

    def _bar(self, tracked: Tracked, width: int) -> RenderableType:
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True, overflow="ellipsis", max_width=width // 2)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_column(no_wrap=True)
        seconds = self._tracker.remaining(tracked)
        left = "" if seconds is None or tracked.ended else f"{_clock(seconds)} left"
        bar = ProgressBar(total=max(tracked.steps, 1), completed=tracked.step)
        row.add_row(tracked.name, bar, f"{tracked.step}/{tracked.steps}", left)
        return row


def _accuracies(tracked: Tracked, options: ConsoleOptions) -> RenderableType:
    """Return a row for each task; all sparklines have one scale, so that they can be compared."""
    # Copies: another thread may add accuracies while this one draws.
    rows = [(name, list(values)) for name, values in list(tracked.accuracy.items())]
    every = [value for _, values in rows for value in values]
    low = min(min(every), max(every) - _SPREAD)
    wide = options.max_width >= _SPANS
    longest = min(_NAME, options.max_width // 3, max(len(name) for name, _ in rows))
    width = max(1, min(_BLOCKS, options.max_width - longest - (30 if wide else 14)))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=longest + 2)
    for _ in range(3):
        table.add_column(no_wrap=True)
    for name, values in rows:
        blocks = "" if options.ascii_only else sparkline(values, low, max(every), width)
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
        values: Numbers to show.
        low: Number of the lowest block.
        high: Number of the highest block. If it equals ``low``, every block is the
            lowest.
        width: Largest number of blocks; None takes as many as there are numbers.
    """
    count = len(values) if width is None else min(width, len(values))
    cuts = [len(values) * k // count for k in range(count + 1)] if count else []
    shares = (
        (fmean(values[start:stop]) - low) / (high - low) if high > low else 0.0
        for start, stop in pairwise(cuts)
    )
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round(top * min(max(share, 0.0), 1.0))] for share in shares)
