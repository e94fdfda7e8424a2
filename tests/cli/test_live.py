"""What a run shows while it goes: to people in a terminal, to programs, and to no one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MAIN = "from geomerge.cli.app import main; main()"
COMMAND = [sys.executable, "-W", "ignore", "-c", MAIN]
# The state is written after every step, so that nothing that was shown is walked again.
EVERY_STEP = f"import geomerge.walks.state as state; state._LEAST = state._SHARE = 0.0; {MAIN}"
MERGE = [
    "merge", "a.pt", "b.pt", "--manifold", "a=digits", "--manifold", "b=digits-permuted",
    "--preset", "sketch", "--damping", "1e-4", "--steps", "500", "--points", "8", "--out", "run",
]  # fmt: skip

Terminal = Callable[..., Any]


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny networks."""
    return shutil.copytree(tiny, tmp_path_factory.mktemp("live"), dirs_exist_ok=True)


def piped(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, cwd=folder, check=False
    )


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_an_interrupted_merge_says_so_and_its_events_tell_where_it_went_on(
    small: Path, terminal: Terminal
) -> None:
    shown = terminal([*COMMAND[:-1], EVERY_STEP, *MERGE], small, 60, stop_at="left")
    assert shown.code == 130
    sentence = "geomerge: interrupted; the same command goes on where this one stopped"
    assert shown.last.replace("\n", "") == sentence
    assert "\x1b[?25h" in shown.written.rpartition("\x1b[?25l")[2]  # the cursor is back
    board = next(s for s in shown.screens if "left" in s)
    begins = r"toward a, damping 0.0001 .* (\d+)/500 00:\d\d left\n  a +[0-9.]+ %  ▁"
    found = re.match(begins, board)
    assert found, board
    assert all(len(line) <= 60 for line in board.splitlines())

    done = piped(*MERGE, "--log-json", "--json", folder=small)
    assert done.returncode == 0, done.stderr
    report = json.loads((small / "run" / "report.json").read_text())
    assert json.loads(done.stdout) == report
    told = events(done.stderr)
    assert {frozenset(e) for e in told[:-1]} == {
        frozenset(
            ("time", "event", "walk", "whole", "step", "steps", "accuracy", "remaining_seconds")
        )
    }
    assert told[0]["event"] == "start"
    assert 1 < int(found[1]) <= told[0]["step"]
    walks = [e["walk"] for e in told if e["event"] == "start"]
    assert walks == [e["walk"] for e in told if e["event"] == "end"]
    assert len(walks) == len(set(walks)) > 2
    for name in walks:
        steps = [e["step"] for e in told if e.get("walk") == name and e["event"] == "step"]
        assert steps == list(range(steps[0], steps[-1] + 1))
    assert all(set(e["accuracy"]) == {"a", "b"} for e in told[:-1])
    last = told[-1]
    assert (last["event"], last["folder"], last["before"]) == ("finished", "run", False)

    again = piped(*MERGE, "--log-json", folder=small)
    (only,) = events(again.stderr)
    assert only["before"]


def test_a_terminal_shows_bars_and_keeps_nothing_but_the_result(
    geomerge: Callable[..., Any], tmp_path: Path, terminal: Terminal
) -> None:
    words = ["train", "--manifold", "digits", "--epochs", "30", "--arch", "lenet-300-100"]
    words += ["--no-sketch"]
    shown = terminal([*COMMAND, *words, "--out", "c.pt"], tmp_path, 100)
    assert shown.code == 0, shown.last
    boards = [s for s in shown.screens if "training on digits" in s]
    assert any(" left" in board and "█" in board for board in boards)
    assert "training on" not in shown.last
    assert shown.last.startswith("c.pt: lenet-300-100 on digits, accuracy")

    quiet = geomerge(*words, "--out", "d.pt", cwd=tmp_path)
    assert quiet.returncode == 0
    assert quiet.stderr == ""
    assert (tmp_path / "c.pt").read_bytes() == (tmp_path / "d.pt").read_bytes()


def test_mistakes_are_events_too_where_events_are_written(
    geomerge: Callable[..., Any], tmp_path: Path
) -> None:
    failed = geomerge(
        "merge", "none.pt", "b.pt", "--manifold", "digits", "--log-json", cwd=tmp_path
    )
    assert failed.returncode == 2
    assert failed.stdout == ""
    (event,) = events(failed.stderr)
    assert event["event"] == "failed"
    assert event["message"].startswith("no file none.pt")


def test_a_run_that_fails_leaves_its_sentence_alone_on_the_screen(
    small: Path, terminal: Terminal
) -> None:
    words = ["merge", "a.pt", "b.pt", "--manifold", "nothing", "--out", "failed"]
    shown = terminal([*COMMAND, *words], small, 200)
    assert shown.code == 2
    assert shown.last.startswith("geomerge: ")
    assert shown.last.count("\n") == 0
