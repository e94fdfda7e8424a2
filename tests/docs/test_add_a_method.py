"""The page on adding a method: its code runs, and its methods obey the laws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from geomerge.comparison import METHODS
from geomerge.testing import MethodLaws

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


def test_the_example_runs_and_its_methods_obey_the_laws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "model-stock" not in METHODS, "it is a method of geomerge now; take another example"
    monkeypatch.setattr(METHODS, "_objects", dict(METHODS._objects))
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(block, names)
    laws = [v for v in names.values() if isinstance(v, type) and issubclass(v, MethodLaws)]
    tested = {law.name for law in laws if law is not MethodLaws}
    assert tested == {"model-stock", "model-stock-scaled"}
    for law in laws:
        if law is not MethodLaws:
            for test in (name for name in dir(law) if name.startswith("test_")):
                getattr(law(), test)()
    comparison = names["comparison"]
    assert {row.method.name for row in comparison.rows} >= tested
    assert not [row.reason for row in comparison.rows if row.reason]
    assert "4 methods" in capsys.readouterr().out
