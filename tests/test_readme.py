"""What the README says is what the repository does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_tables_are_what_the_benchmarks_measured() -> None:
    file = ROOT / "benchmarks" / "readme_table.py"
    spec = importlib.util.spec_from_file_location("readme_table", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in module.PAGES:
        text = (ROOT / page).read_text()
        assert module.rendered(page, text) == text


def test_the_python_example_runs(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (code,) = (block for block in blocks if "geomerge as gm" in block)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes((digits / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"mnist"', '"digits"'), {})
    assert (tmp_path / "merged.safetensors").exists()
