"""Merges, sparsification and streams on a second device, which refuses tensors of the CPU.

The device is compiled from fixtures/second_device.cpp. Its kernels are the CPU's, so that results
are those of the CPU up to the rounding of sums over other layouts.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parent / "fixtures"
WORKS = (
    "merge", "merge_convolutions", "merge_exactly", "merge_files", "sketches", "sparsify",
    "remove_units", "compare", "stream",
)  # fmt: skip


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    made = tmp_path_factory.mktemp("second") / "second_device.so"
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    words = [
        compiler, "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{include}",
        f"-isystem{include / 'torch' / 'csrc' / 'api' / 'include'}",
        str(FIXTURES / "second_device.cpp"), "-o", str(made), f"-L{torch_folder / 'lib'}",
        "-ltorch", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"another C++ interface than that of torch 2.14: {done.stderr[:500]}")
    return made


def run(library: Path, work: str, device: str, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    words = [FIXTURES / "on_second_device.py", library, work, device, folder]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("work", WORKS)
def test_work_on_a_second_device_gives_the_same(library: Path, work: str, tmp_path: Path) -> None:
    ours = run(library, work, "second", tmp_path / "second")
    other = run(library, work, "cpu", tmp_path / "cpu")
    assert ours.keys() == other.keys()
    for name, value in other.items():
        expected = torch.tensor(value, dtype=torch.float64)
        found = torch.tensor(ours[name], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
