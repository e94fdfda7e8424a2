"""``geomerge stream`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = ["--epochs", "2", "--experiences", "2", "--batch", "32", "--arch", "mlp-16"]


def geomerge(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from geomerge.cli.app import main; main()"]
    return subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, cwd=folder, check=False
    )


def test_a_stream_leaves_a_table_a_picture_and_a_report(tmp_path: Path) -> None:
    words = ["stream", "split-digits", "--only", "geodesic,naive,joint", *QUICK, "--out", "run"]
    found = geomerge(*words, folder=tmp_path)
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

    again = geomerge(*words, "--json", folder=tmp_path)
    assert again.returncode == 0
    assert json.loads(again.stdout) == report
    assert "finished before" in geomerge(*words, folder=tmp_path).stdout
    other = geomerge(*words, "--seed", "1", folder=tmp_path)
    assert other.returncode == 2
    assert "another recipe" in other.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["split-mnst"], "did you mean"),
        (["split-digits", "--only", "ewk"], "did you mean 'ewc'"),
        (["split-digits", "--experiences", "3"], "give 2 or 5"),
        (["split-digits", "--memory-limit", "lots"], "20MB"),
        (["permuted-mnist", "--data-root", "nowhere"], "no MNIST under nowhere"),
        (["split-digits", *QUICK, "--only", "naive", "--learning-rate", "1e9"], "naive=0.01"),
        (
            ["split-digits", *QUICK, "--only", "geodesic", "--memory-limit", "1KB"],
            "raise the limit",
        ),
    ],
)
def test_mistakes_end_in_one_sentence(words: list[str], part: str, tmp_path: Path) -> None:
    found = geomerge("stream", *words, folder=tmp_path)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("geomerge: ")
    assert found.stderr.count("\n") == 1, found.stderr
    assert part in found.stderr
    assert not any(tmp_path.iterdir())


def test_a_row_that_diverges_does_not_take_the_others_along(tmp_path: Path) -> None:
    words = ["stream", "split-digits", *QUICK, "--only", "naive,joint", "--rate", "naive=1e9"]
    found = geomerge(*words, "--out", "run", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "naive is not in the table: the weights of naive stopped" in found.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["joint"]
    assert "naive" in report["diverged"]
