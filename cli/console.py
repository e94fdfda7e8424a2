"""Messages, exit codes, progress and tables that all commands share."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from geomerge.monitor.progress import Progress

USER_ERROR = 2
INTERRUPTED = 130  # 128 + the number of SIGINT, as shells have it
LOG_JSON = "--log-json"
# The common base of what typer raises for words that it cannot use; it has no public name.
USAGE_ERROR: Any = typer.BadParameter.__base__

# Arguments of the library with another name on the command line.
_SAID = {
    "architecture": "arch",
    "experts": "networks",
    "folder": "out",
    "inputs": "manifold",
    "max_samples": "budget",
    "networks": "network",
}
_ARGUMENT = re.compile(r"`([a-z_-]+)`")
_flags: ContextVar[Mapping[str, str] | None] = ContextVar("flags", default=None)
_told: ContextVar[set[str]] = ContextVar("told")  # notes that the command has printed


@contextmanager
def speaking(flags: Mapping[str, str], log_json: bool, verbose: bool = False) -> Iterator[None]:
    """Run a command: a user's mistake in the block ends it with one sentence and exit code 2.

    Args:
        flags: Flag of each option of the command, by its name in Python.
        log_json: Whether messages are events, one JSON object a line.
        verbose: Whether a message is followed by those of other packages that it stands for.
    """
    from geomerge.errors import GeomergeError

    token, told = _flags.set(flags), _told.set(set())
    try:
        with _notes_of_warnings(log_json):
            yield
    except GeomergeError as error:
        if _told_by_another(error):
            raise SystemExit(USER_ERROR) from None
        code = fail(str(error), log_json)
        for cause in _causes(error) if verbose else ():
            _say("cause", cause, log_json)
        raise SystemExit(code) from None
    except OSError as error:  # a full disk, a folder taken away while the command worked
        what = f"{(error.strerror or str(error)).lower()} ({error.filename or 'no file named'})"
        message = f"{what}; make room or check the folder, and run the command again"
        raise SystemExit(fail(message, log_json)) from None
    finally:
        _flags.reset(token)
        _told.reset(told)


def _causes(error: BaseException) -> Iterator[str]:
    """Yield what was raised before an error and is not said in it, the last first."""
    before = error.__cause__ or error.__context__
    while before is not None:
        kind = type(before)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        yield f"{name}: {before}"
        before = before.__cause__ or before.__context__


def _told_by_another(error: Exception) -> bool:
    """Whether the first of several processes meets the same error, or its cause."""
    from geomerge.errors import CheckpointError, OptionError, ProcessError, TaskError
    from geomerge.processes import first

    same = (CheckpointError, OptionError, ProcessError, TaskError)
    return isinstance(error, same) and not first()


@contextmanager
def _notes_of_warnings(log_json: bool) -> Iterator[None]:
    """Print what the block had to assume as notes after it, but none that was a note before.

    Results have the same sentences in their notes.
    """
    from geomerge.errors import AssumptionWarning

    heard: list[str] = []
    usual: Any = warnings.showwarning

    def listen(message: Any, category: Any, filename: str, *rest: Any, **more: Any) -> None:
        if issubclass(category, AssumptionWarning):
            heard.append(str(message))
        else:
            usual(message, category, filename, *rest, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", AssumptionWarning)
        warnings.showwarning = listen
        yield
    for note in dict.fromkeys(heard):
        if note not in _told_notes():
            _say("note", f"note: {note}", log_json)


def with_flags(message: str) -> str:
    """Return a message of the library with flags in the place of arguments in backticks."""
    flags = _flags.get() or {}

    def said(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return flags.get(name) or flags.get(_SAID.get(name, "")) or found[0]

    return _ARGUMENT.sub(said, message)


def usage_sentence(error: Any) -> str:
    """Return typer's message on unusable arguments as a sentence of geomerge."""
    said = " ".join(error.format_message().split()).replace(". Did you", "; did you").rstrip(".?")
    command = error.ctx.command_path if error.ctx is not None else "geomerge"
    return f"{said[:1].lower()}{said[1:]}; see {command} --help"


def fail(message: str, log_json: bool = False) -> int:
    """Say one sentence on the error stream and return the exit code of a user's mistake."""
    _say("failed", message, log_json)
    return USER_ERROR


@contextmanager
def watched(log_json: bool, resumes: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """Show the progress of walks in the block, and a remedy where it is interrupted.

    Args:
        log_json: Whether progress is written as events, one JSON object a line, not as bars.
        resumes: Whether the same command continues where the block was interrupted.
    """
    from geomerge.monitor import log_lines, progress

    try:
        with log_lines(sys.stderr) if log_json else progress() as show:
            yield show
    except KeyboardInterrupt:
        then = "goes on where this one stopped" if resumes else "starts again, nothing was written"
        _say("interrupted", f"interrupted; the same command {then}", log_json)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that a command is at work and for how long, on a terminal, where nothing else is shown.

    Args:
        what: Description of the work, such as "measuring a.pt".
    """
    from geomerge.monitor.progress import Progress

    with watched(log_json=False, resumes=False) as show:
        if show is not None:
            show(Progress(what, 0, 1, {}, whole=True))
        yield


def _say(event: str, message: str, log_json: bool) -> None:
    """Print one sentence to the error stream, or the same as an event."""
    message = with_flags(message)
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
    """Print the results of a run and its folder.

    Args:
        folder: Folder of the run.
        report: Content of its ``report.json``.
        before: Whether the run had been finished before.
        show: Function that prints the report for people; None prints it as JSON and nothing else.
        log_json: Whether the last event goes to the error stream.
    """
    tell_finished(log_json, folder=str(folder), before=before)
    if show is None:
        _told_notes().update(report.get("notes", ()))
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
        title: Text above the table.
        headings: Headings of the columns.
        rows: Cells of each row.
        bold: Function of a row's first cell: whether the row stands out.
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


def _told_notes() -> set[str]:
    return _told.get(set())


def show_notes(notes: Iterable[str]) -> None:
    """Print notes of a result, each on a line."""
    for note in notes:
        _told_notes().add(note)
        print(f"note: {with_flags(note)}")


def percent(value: float | None) -> str:
    """Return an accuracy as it stands in a table."""
    return "-" if value is None else f"{100 * value:.2f}"
