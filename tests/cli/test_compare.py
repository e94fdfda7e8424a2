"""``geomerge compare`` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASKS = ["--manifold", "digits", "--manifold", "digits-permuted"]


def test_a_comparison_leaves_a_table_a_picture_and_a_report(
    geomerge: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    words = [
        "compare", digits / "a.pt", digits / "b.pt", *TASKS, "--budget", "5000", "--steps", "20",
        "--skip", "fisher,ewc,sketch-walk", "--out", "run",
    ]  # fmt: skip
    found = geomerge(*words, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert "joint-walk" in found.stdout
    assert "ties: does not apply: " in found.stdout
    table = [line for line in found.stdout.splitlines() if line.startswith(" ")]
    assert max(map(len, table)) <= 106
    assert "…" not in found.stdout
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        "recipe.json", "report.json", "report.html", "compare.png", "compare.svg", "table.md",
    }  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert "ewc" not in rows
    assert rows["regmean"]["data"] == {"inputs": ["a", "b"], "labels": [], "sketches": []}
    assert rows["wise-ft"]["samples"] <= report["budget"] == 5000
    assert rows["slerp"]["worst_drop"] == max(
        report["networks"][k]["expert_test"] - rows["slerp"]["test"][k] for k in "ab"
    )
    assert "| slerp |" in (run / "table.md").read_text()
    assert (run / "compare.png").read_bytes().startswith(b"\x89PNG")

    again = geomerge(*words, "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == report
    assert "finished before" in geomerge(*words, cwd=tmp_path).stdout
    other = geomerge(*words, "--seed", "1", cwd=tmp_path)
    assert other.returncode == 2
    assert "another recipe" in other.stderr


def test_all_rows_start_from_aligned_networks_where_they_are_asked_for(
    geomerge: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    def average(*more: str) -> float:
        words = ["compare", digits / "a.pt", digits / "b.pt", *TASKS, "--head", "separate"]
        found = geomerge(*words, "--only", "average", "--json", *more, cwd=tmp_path)
        assert found.returncode == 0, found.stderr
        (row,) = (row for row in json.loads(found.stdout)["rows"] if row["name"] == "average")
        return float(row["worst_drop"])

    assert average("--align", "weights") < average()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--only", "slurp"], "did you mean 'slerp'"),
        (["--budget", "0"], "expected --budget to be 1 or more"),
        (["--pick", "best"], "unknown pick"),
        (["--base", "nowhere.pt"], "nowhere.pt"),
        (["--head", "shred"], "did you mean 'shared'"),
    ],
)
def test_mistakes_end_in_one_sentence(
    geomerge: Callable[..., Any], words: list[str], part: str, digits: Path, tmp_path: Path
) -> None:
    files = [digits / "a.pt", digits / "b.pt"]
    found = geomerge("compare", *files, *TASKS, *words, cwd=tmp_path)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("geomerge: ")
    assert found.stderr.count("\n") == 1, found.stderr
    assert part in found.stderr
    assert not any(tmp_path.iterdir())
