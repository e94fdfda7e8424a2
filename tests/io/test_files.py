"""Files of tensors: tied ones, and places that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from geomerge.errors import RunError
from geomerge.io.files import write_bytes, write_tensors

COMMAND = """
import resource, torch
from pathlib import Path
from geomerge.errors import RunError
from geomerge.io.files import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_tensors(Path("x.safetensors"), {"a": torch.ones(1000)})
except RunError as error:
    print(error)
"""


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    w = torch.arange(12.0)
    tensors = {
        "whole": w, "tied": w, "part": w[2:5], "turned": w.view(3, 4).T, "none": w[:0],
        "other": torch.tensor([1, 2]),
    }  # fmt: skip
    file = tmp_path / "x.safetensors"
    write_tensors(file, tensors, {"of": "test"})
    found = load_file(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    first = file.read_bytes()
    write_tensors(file, {name: x.clone() for name, x in tensors.items()}, {"of": "test"})
    assert file.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"before")
    found = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "cannot write x.safetensors (file too large); make room" in found.stdout
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"before"]
    with pytest.raises(RunError, match="cannot write"):
        write_tensors(tmp_path / "x.safetensors" / "y.safetensors", {"a": torch.ones(2)})
    with pytest.raises(KeyError):  # a type that the format does not have
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2, dtype=torch.complex128)})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"before"]


def test_what_is_written_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr("os.fsync", fsync)
    for name, write in (
        ("x", lambda file: write_tensors(file, {"a": torch.ones(9)})),
        ("y", lambda file: write_bytes(file, b"content")),
    ):
        write(tmp_path / name)
        assert synced.pop() == (tmp_path / name).stat().st_ino
