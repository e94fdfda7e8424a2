"""A terminal that tests can look at."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

_PIECE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]")


def screen(written: str, width: int) -> str:
    """Return what a terminal shows after some output: no more than rich and the shell use."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for piece in _PIECE.finditer(written):
        if piece[0] == "\r":
            column = 0
        elif piece[0] == "\n":
            row, column = row + 1, 0
        elif piece[2] == "A":
            row = max(0, row - int(piece[1] or 1))
        elif piece[2] == "K":
            rows[row] = [] if piece[1] == "2" else rows[row][:column]
        elif piece[2] is not None:
            assert piece[2] in "mhl", f"unknown to this terminal: {piece[0]!r}"
        else:
            if column >= width:
                row, column = row + 1, 0
            rows += [[] for _ in range(row + 1 - len(rows))]
            rows[row] += " " * (column + 1 - len(rows[row]))
            rows[row][column] = piece[0]
            column += 1
        rows += [[] for _ in range(row + 1 - len(rows))]
    return "\n".join("".join(cells).rstrip() for cells in rows).rstrip()


@dataclass
class Shown:
    """What a command showed: its exit code, the screen each time it changed, and at the end."""

    code: int
    screens: list[str]
    last: str
    written: str


@pytest.fixture
def terminal() -> Callable[..., Shown]:
    """Run a command in a terminal of some width; Ctrl-C is pressed when a text is on the screen."""

    def run(command: list[str], folder: Path, width: int, stop_at: str | None = None) -> Shown:
        child, line = pty.fork()
        if child == 0:  # in the new process
            # What was started in the background by a script ignores Ctrl-C, and so do its children.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(folder)
            os.environ.update(TERM="xterm", COLUMNS=str(width), LINES="40")
            os.execv(command[0], command)
        fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        written, screens = b"", [""]
        end = time.monotonic() + 240
        while time.monotonic() < end:
            if not select.select([line], [], [], 1)[0]:
                continue
            try:
                got = os.read(line, 2**16)
            except OSError:  # how Linux says that the other side is closed
                break
            if not got:
                break
            written += got
            screens.append(screen(written.decode(errors="ignore"), width))
            if stop_at is not None and stop_at in screens[-1]:
                os.write(line, b"\x03")
                stop_at = None
        else:
            os.kill(child, 9)
        os.close(line)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Shown(code, screens, screens[-1], written.decode(errors="ignore"))

    return run
