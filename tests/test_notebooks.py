"""The committed notebooks are whole and clean, and run from top to bottom."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 500_000


OF_DATA = {"06-three-fine-tuned-berts"}  # those whose networks lie in GEOMERGE_DATA


def test_there_are_six() -> None:
    assert [file.stem[:2] for file in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_committed_notebook_has_clean_outputs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    from run import complaints

    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert file.stat().st_size <= MOST_BYTES
    assert complaints(notebook) == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


def test_complaints_name_errors_warnings_and_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    from run import complaints

    v4 = nbformat.v4
    outputs = [
        v4.new_output("error", ename="ValueError", evalue="no"),
        v4.new_output("stream", name="stderr", text="UserWarning: old"),
        v4.new_output("display_data", {"text/plain": "'/home/me/a.pt'"}),
        v4.new_output("stream", name="stdout", text="accuracy/home 1/2"),
    ]
    found = complaints(v4.new_notebook(cells=[v4.new_code_cell("x", outputs=outputs)]))
    assert [line.partition(": ")[0] for line in found] == [
        "cell 0 failed", "cell 0 writes to stderr", "cell 0 shows a place on this machine",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_top_to_bottom(file: Path) -> None:
    if file.stem in OF_DATA and "GEOMERGE_DATA" not in os.environ:
        pytest.skip("GEOMERGE_DATA is not set")
    before = file.read_bytes()
    done = subprocess.run(
        [sys.executable, "notebooks/run.py", "--smoke", file.stem],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert file.read_bytes() == before
