"""Large tensors in files: their values, and the memory that the process gives back."""

from __future__ import annotations

import gc
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from geomerge.errors import CheckpointError
from geomerge.io import checkpoint, paged
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


def mixed() -> dict[str, torch.Tensor]:
    """Tensors of several types, so large that they lie in one file or two."""
    return {
        "weight": torch.randn(4100, 4100), "count": torch.tensor(3), "mean": torch.randn(4100),
        "half": torch.randn(501).bfloat16(), "more": torch.randn(2**21), "mask": torch.ones(9) > 0,
        "none": torch.empty(0, 4),
    }  # fmt: skip


def test_tensors_of_several_types_in_one_file_are_saved_each_by_itself(tmp_path: Path) -> None:
    tensors = mixed()
    save_checkpoint(tmp_path / "a.safetensors", Checkpoint(tensors))
    large = load_checkpoint(tmp_path / "a.safetensors")
    save_checkpoint(tmp_path / "a.pt", large)
    torch.save(large.weights, tmp_path / "plain.pt")
    for file in ("a.pt", "plain.pt"):
        found = load_checkpoint(tmp_path / file).weights
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    stored = paged.stored(tensors)
    torch.save(stored, tmp_path / "stored.pt")
    found = torch.load(tmp_path / "stored.pt")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert len(pickle.dumps(stored["half"])) < 5000


@on_linux
def test_tensors_beside_others_in_a_file_keep_their_values_once_released() -> None:
    tensors = mixed()
    found = paged.stored(tensors)
    before = resident()
    assert torch.equal(found["weight"], tensors["weight"])
    paged.release(*found.values(), found["weight"][2000:2003], found["half"][3:])
    assert resident() - before < 0.1 * found["weight"].nbytes
    paged.give_back()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_without_room_tensors_are_copied_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "LEAST", 1)
    monkeypatch.setattr(paged, "_mapped", lambda _: None)
    table = torch.randn(7, 3)
    found = paged.stored({"turned": table.T})["turned"]
    wanted = table.T.clone()
    table.zero_()
    assert found.is_contiguous()
    assert torch.equal(found, wanted)


def test_there_is_room_only_on_a_disk_and_for_so_many_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    monkeypatch.setattr(paged, "_in_memory", lambda _: False)
    assert (paged.has_room(100), paged.has_room(101)) == (True, False)
    monkeypatch.setattr(paged, "_in_memory", lambda _: True)
    assert not paged.has_room(1)


@on_linux
def test_a_tmpfs_is_told_from_a_disk() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    if ["/dev/shm", "tmpfs"] not in [mount[1:3] for mount in mounts]:
        pytest.skip("no tmpfs in /dev/shm")
    assert paged._in_memory("/dev/shm")
    assert not paged._in_memory("/proc")


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


@pytest.mark.parametrize("missing", [True, False], ids=["no-files", "slightly-smaller"])
def test_large_checkpoints_do_not_change_with_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    file, weights = tmp_path / "a.safetensors", {"0.weight": torch.randn(400, 3)}
    save_checkpoint(file, Checkpoint(weights))
    if missing:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(paged, "LEAST", 1 if missing else file.stat().st_size)
    large = load_checkpoint(file)
    with open(file, "r+b") as stream:  # the same file, and not another in its place
        stream.seek(-4800, os.SEEK_END)
        stream.write(bytes(4800))
    assert torch.equal(large.weights["0.weight"], weights["0.weight"])


@on_linux
def test_a_large_checkpoint_replaced_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    digest = checkpoint.file_sha256
    for place in (file, other):
        save_checkpoint(place, Checkpoint({"0.weight": torch.randn(4, 3)}))

    def replaced(path: Path) -> str:
        other.replace(path)
        return digest(path)

    monkeypatch.setattr(paged, "LEAST", 1)
    monkeypatch.setattr(checkpoint, "file_sha256", replaced)
    with pytest.raises(CheckpointError, match="was replaced or written to while it was read"):
        load_checkpoint(file)
