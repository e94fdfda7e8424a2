"""What the README says is what the repository does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def test_the_tables_are_what_the_benchmarks_measured() -> None:
    file = ROOT / "benchmarks" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in module.PAGES:
        text = (ROOT / page).read_text()
        assert module.rendered(page, text) == text


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (code,) = (block for block in blocks if "geomerge as gm" in block)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert set(names["result"].accuracies) == {"a", "b"}
    x = names["tasks"][0].test.inputs.batch(slice(0, 3))
    assert names["network"](x).shape == names["halfway"](x).shape == (3, 10)


def test_it_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
