"""Large tensors in files: their values, and the memory that the process gives back."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

from geomerge.io import paged
from geomerge.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

SIZE = 5 * 2**22  # 80 MB in float32
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reserves and gives back")


def resident() -> int:
    """Bytes of this process's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@on_linux
def test_a_large_vector_keeps_its_values_and_takes_no_memory_once_released() -> None:
    v = paged.empty(SIZE)
    before = resident()
    torch.arange(SIZE, out=v)
    assert resident() - before > 0.9 * v.nbytes
    paged.release(v)
    assert resident() - before < 0.1 * v.nbytes
    assert torch.equal(v, torch.arange(SIZE, dtype=v.dtype))


@on_linux
def test_arithmetic_in_parts_holds_a_part_at_a_time() -> None:
    torch.manual_seed(0)
    v, w = paged.copied(torch.randn(SIZE)), paged.copied(torch.randn(SIZE))
    gc.collect()
    before = resident()
    gap, middle, length = paged.difference(v, w), paged.lerp(v, w, 0.3), paged.distance(v, w)
    assert resident() - before < 0.5 * v.nbytes
    assert torch.equal(gap, v - w)
    assert torch.equal(middle, torch.lerp(v, w, 0.3))
    assert length == pytest.approx(float((v - w).double().norm()), rel=1e-4)


def test_a_part_of_a_released_vector_loses_nothing_of_the_others() -> None:
    v = paged.empty(SIZE)
    v.fill_(2.0)
    paged.release(v[1000:3000], v[2**20 : 2**21], torch.ones(3))
    assert bool((v == 2).all())


def test_without_room_on_the_disk_vectors_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    v = paged.empty(SIZE)
    v.fill_(1.0)
    paged.release(v)
    assert bool((v == 1).all())


def test_stored_tensors_have_their_values_and_stay_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "LEAST", 1)
    table = torch.randn(7, 3)
    tensors = {
        "table": table, "tied": table, "turned": table.T, "half": table.bfloat16(),
        "count": torch.tensor(3), "none": torch.empty(0, 4), "mask": table > 0,
    }  # fmt: skip
    found = paged.stored(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert found["tied"].data_ptr() == found["table"].data_ptr() != table.data_ptr()


def test_large_checkpoints_are_read_as_small_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.safetensors"
    weights = {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4)}
    save_checkpoint(file, Checkpoint(weights, {"task": "digits"}, {"s": torch.ones(2)}))
    small = load_checkpoint(file)
    monkeypatch.setattr(paged, "LEAST", 1)
    large = load_checkpoint(file)
    assert (large.meta, large.digest) == (small.meta, small.digest)
    assert all(torch.equal(large.weights[k], small.weights[k]) for k in weights)
    assert torch.equal(large.sketch["s"], small.sketch["s"])
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")  # the tensors are no longer the file's
    assert all(torch.equal(large.weights[k], weights[k]) for k in weights)
