"""``geomerge stream`` as a user runs it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from geomerge.cli.app import app

ROOT = Path(__file__).parents[2]
QUICK = ["--epochs", "2", "--experiences", "2", "--batch", "32", "--arch", "mlp-16"]


def test_a_stream_leaves_a_table_a_picture_and_a_report(
    geomerge: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["stream", "split-digits", "--only", "geodesic,naive,joint", *QUICK, "--out", "run"]
    found = geomerge(*words, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert "geodesic" in found.stdout
    assert "class-incremental" in found.stdout
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        "recipe.json", "report.json", "report.html", "stream.png", "stream.svg", "table.md",
    }  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["geodesic", "naive", "joint"]
    assert report["stream"]["experiences"][0]["name"].startswith("classes ")
    table = (run / "table.md").read_text()
    assert table.count("\n| ") == 5
    assert "| joint |" in table
    assert (run / "stream.png").read_bytes().startswith(b"\x89PNG")

    again = geomerge(*words, "--json", cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads(again.stdout) == report
    assert "finished before" in geomerge(*words, cwd=tmp_path).stdout
    other = geomerge(*words, "--seed", "1", cwd=tmp_path)
    assert other.returncode == 2
    assert "another recipe" in other.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["split-mnst"], "did you mean"),
        (["split-digits", "--only", "ewk"], "did you mean 'ewc'"),
        (["split-digits", "--experiences", "3"], "give 2 or 5"),
        (["split-digits", "--memory-mb", "0"], "positive"),
        (["permuted-mnist", "--data-root", "nowhere"], "no MNIST under nowhere"),
        (["split-digits", *QUICK, "--only", "naive", "--learning-rate", "1e9"], "naive=0.01"),
        (
            ["split-digits", *QUICK, "--only", "geodesic", "--memory-mb", "0.001"],
            "raise --memory-mb",
        ),
    ],
)
def test_mistakes_end_in_one_sentence(
    geomerge: Callable[..., Any], words: list[str], part: str, tmp_path: Path
) -> None:
    found = geomerge("stream", *words, cwd=tmp_path)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("geomerge: ")
    assert found.stderr.count("\n") == 1, found.stderr
    assert part in found.stderr
    assert not any(tmp_path.iterdir())


def test_a_row_that_diverges_does_not_take_the_others_along(
    geomerge: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["stream", "split-digits", *QUICK, "--only", "naive,joint", "--rate", "naive=1e9"]
    found = geomerge(*words, "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "naive is not in the table: the weights of naive stopped" in found.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["joint"]
    assert "naive" in report["diverged"]


def test_the_earlier_spelling_of_the_memory_still_works(
    geomerge: Callable[..., Any], tmp_path: Path
) -> None:
    found = geomerge("stream", "split-digits", "--memory-limit", "much", cwd=tmp_path)
    assert found.returncode == 2
    assert "expected a size such as 20MB, got 'much'" in found.stderr
    assert "--memory-limit" not in geomerge("stream", "--help", cwd=tmp_path).stdout


def test_the_commands_of_the_guide_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[str] = []

    def learned(name: str, *_: Any) -> None:
        streams.append(name)
        raise SystemExit(0)

    monkeypatch.setattr("geomerge.runs.stream.run_stream", learned)
    guide = (ROOT / "docs" / "continual.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    geomerge (stream .*)$", guide, re.M)
    for command in commands:
        found = CliRunner().invoke(app, shlex.split(command))
        assert found.exit_code == 0, (command, found.output)
    assert len(streams) == len(commands) >= 14
