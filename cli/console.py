"""Messages, exit codes, progress and tables of all commands."""

from __future__ import annotations

import json
import os
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
INTERRUPTED = 130  # 128 + SIGINT, as in shells
CLOSED = 141  # 128 + SIGPIPE
LOG_JSON = "--log-json"
# Base class of typer's errors for invalid words, which has no public name.
USAGE_ERROR: Any = typer.BadParameter.__base__

# Arguments of the library with a different name on the command line.
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
_told: ContextVar[set[str]] = ContextVar("told")  # notes already printed by the command


@contextmanager
def speaking(flags: Mapping[str, str], log_json: bool, verbose: bool = False) -> Iterator[None]:
    """Run a command; user errors in the context end it with one sentence and exit code 2.

    Args:
        flags: Flag of each option of the command, by its Python name.
        log_json: Whether messages are written as events, one JSON object per line.
        verbose: Whether to print the causes of an error, messages of other packages, as well.
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
    except BrokenPipeError:  # the output is read no further, as by head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED) from None
    except OSError as error:  # a full disk, or a folder removed during the command
        what = f"{(error.strerror or str(error)).lower()} ({error.filename or 'no file named'})"
        message = f"{what}; make room or check the folder, and run the command again"
        raise SystemExit(fail(message, log_json)) from None
    finally:
        _flags.reset(token)
        _told.reset(told)


def _causes(error: BaseException) -> Iterator[str]:
    """Yield the messages of an error's causes that it does not contain, the latest first."""
    before = error.__cause__ or error.__context__
    while before is not None:
        kind = type(before)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        yield f"{name}: {before}"
        before = before.__cause__ or before.__context__


def _told_by_another(error: Exception) -> bool:
    """Return whether the first of several processes reports the same error, or its cause."""
    from geomerge.errors import CheckpointError, OptionError, ProcessError, TaskError
    from geomerge.processes import first

    same = (CheckpointError, OptionError, ProcessError, TaskError)
    return isinstance(error, same) and not first()


@contextmanager
def _notes_of_warnings(log_json: bool) -> Iterator[None]:
    """Print assumption warnings of the context as notes after it, each only once.

    Notes of results contain the same sentences.
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
    """Replace arguments in backticks by flags in a message of the library."""
    flags = _flags.get() or {}

    def said(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return flags.get(name) or flags.get(_SAID.get(name, "")) or found[0]

    return _ARGUMENT.sub(said, message)


def usage_sentence(error: Any) -> str:
    """Return typer's message on invalid arguments in the form of geomerge's."""
    said = " ".join(error.format_message().split()).replace(". Did you", "; did you").rstrip(".?")
    command = error.ctx.command_path if error.ctx is not None else "geomerge"
    return f"{said[:1].lower()}{said[1:]}; see {command} --help"


def fail(message: str, log_json: bool = False) -> int:
    """Print one sentence to standard error and return the exit code of user errors."""
    _say("failed", message, log_json)
    return USER_ERROR


@contextmanager
def watched(log_json: bool, resumes: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """Show the progress of walks in the context, and a remedy on interruption.

    Args:
        log_json: Whether progress is written as events, one JSON object per line, not as bars.
        resumes: Whether the same command resumes an interrupted one.
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
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show a description of the work and the elapsed time on a terminal.

    Args:
        what: Description of the work, such as "measuring a.pt".

    Yields:
        Function that replaces the description.
    """
    from geomerge.monitor.progress import Progress

    with watched(log_json=False, resumes=False) as show:

        def describe(what: str) -> None:
            if show is not None:
                show(Progress(what, 0, 1, {}, whole=True))

        describe(what)
        yield describe


def _say(event: str, message: str, log_json: bool) -> None:
    """Print one sentence, or an event with it, to standard error."""
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
        before: Whether the run was already finished.
        show: Function that prints the report as text; None prints only JSON.
        log_json: Whether to write the final event to standard error.
    """
    tell_finished(log_json, folder=str(folder), before=before)
    if show is None:
        _told_notes().update(report.get("notes", ()))
        print(json.dumps(report, indent=1))
        return
    show(report)
    print(f"{folder} was finished before; nothing changed" if before else f"written to {folder}")


def tell_finished(log_json: bool, **content: Any) -> None:
    """Write the final event of a run if events are enabled."""
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
    """Return a table with narrow columns.

    Args:
        title: Text above the table.
        headings: Headings of the columns.
        rows: Cells of each row.
        bold: Function of a row's first cell that returns whether the row is bold.
        words: Headings of the columns with text.
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
    """Print notes of a result, one per line."""
    for note in notes:
        _told_notes().add(note)
        print(f"note: {with_flags(note)}")


def percent(value: float | None) -> str:
    """Return an accuracy in percent for a table."""
    return "-" if value is None else f"{100 * value:.2f}"


def duration(seconds: float) -> str:
    """Return a number of seconds in a readable unit."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
