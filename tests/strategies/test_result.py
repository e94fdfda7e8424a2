"""Results of a stream table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from geomerge.errors import RunError
from geomerge.runs.run import open_run
from geomerge.strategies import StreamOptions
from geomerge.strategies.result import StreamResult, StreamRow, summary


def row(name: str, matrix: list[list[float]]) -> StreamRow:
    return StreamRow(
        name=name, about="made up", matrix=matrix, select=0.5, learning_rate=0.1, epochs=1,
        kept={"megabytes": 0.1, "examples": 0, "labels": 0}, passes=1.0,
        seconds={"training": 1.0, "merging": 0.0}, **summary(matrix),
    )  # fmt: skip


@pytest.fixture
def result() -> StreamResult:
    experiences = [{"name": f"part {k}", "train": 9, "select": 1, "test": 1} for k in (1, 2)]
    about: dict[str, Any] = {
        "geomerge": "0", "versions": {}, "options": {}, "settings": None,
        "stream": {
            "name": "made-up", "protocol": "class", "meaning": "classes", "seed": 0,
            "experiences": experiences,
        },
        "network": {"architecture": "mlp", "outputs": 2, "heads": 1, "parameters": 3},
    }  # fmt: skip
    rows = [row("first", [[0.9], [0.7, 0.8]]), row("whole", [[0.9, 0.95]])]
    recipe = StreamOptions("split-digits").recipe()
    return StreamResult(rows, {"third": "it diverged"}, about, recipe, "geomerge stream made-up")


def test_the_numbers_of_a_matrix() -> None:
    found = summary([[0.8], [0.9, 0.7], [0.5, 0.8, 0.6]])
    assert found["average"] == pytest.approx([0.8, 0.8, 1.9 / 3])
    assert found["accuracy"] == pytest.approx(1.9 / 3)
    assert found["backward_transfer"] == pytest.approx((-0.3 + 0.1) / 2)
    assert found["forgetting"] == pytest.approx((0.4 - 0.1) / 2)
    assert summary([[0.8, 0.9]])["forgetting"] is None


def test_a_result_shows_its_rows(result: StreamResult) -> None:
    assert "best whole, accuracy 0.9250" in repr(result)
    shown = result._repr_html_()
    assert "92.50" in shown
    assert "third is not in the table: it diverged" in shown


def test_a_result_is_saved_as_a_run(result: StreamResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    assert [one["name"] for one in report["rows"]] == ["first", "whole"]
    assert open_run(folder).kind == "stream"
    assert result.save(folder) == folder
    other = StreamResult(result.rows, {}, result.about, {"stream": {}}, result.command)
    with pytest.raises(RunError, match="another recipe"):
        other.save(folder)
