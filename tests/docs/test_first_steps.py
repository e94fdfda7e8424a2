"""The first steps, taken as the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from geomerge.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "first-steps.md"


@pytest.mark.slow
def test_the_commands_do_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    printed = said = ""
    kinds = []
    names: dict[str, Any] = {}
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.S):
        kinds.append(kind)
        if kind == "bash":
            printed = ""
            for line in block.replace("\\\n", " ").splitlines():
                name, *arguments = shlex.split(line)
                assert name == "geomerge"
                done = CliRunner().invoke(app, arguments, catch_exceptions=False)
                assert done.exit_code == 0, done.output
                printed += done.output
        elif kind == "python":
            exec(block, names)
            said += capsys.readouterr().out
        else:
            assert kind == "text"
            for line in block.splitlines():  # some of the lines, the numbers left out
                pattern = ".+".join(re.escape(part) for part in line.split("…"))
                assert re.search(f"(?m)^{pattern}$", printed), f"{line} is not in\n{printed}"
    assert kinds.count("bash") >= 6
    assert "crossover" in said
    assert set(names["result"].accuracies) == {"a", "b"}
