"""Valid files, damaged in all ways: a reader gives finite tensors or one sentence, nothing else."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_data import make_path, npz_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geomerge import Checkpoint, WeightPath, load_checkpoint, load_task, save_checkpoint
from geomerge.errors import GeomergeError

WEIGHTS = {
    "fc.weight": torch.arange(6.0).view(2, 3),
    "fc.bias": torch.zeros(2),
    "steps": torch.tensor(3),
}
SKETCH = {"fc/inputs.values": torch.ones(3)}
TOKENS = [  # what structure is made of: opcodes, lengths, marks of formats
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"cos\nsystem\n", b"R", b"Q", b"b", b"0", b"(",
    b"\x88\x01", b"\x8a\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff" * 8, b"[" * 5000,
    b"{", b'"', b"-1", b"1e999", b"NaN", b"null", b"F16", b"I64", b"..", b"\x93NUMPY", b"|O",
]  # fmt: skip
FUZZ = settings(
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A way to damage bytes: flips, cuts, pieces put in, put elsewhere or taken twice."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "cut", "put", "over", "repeat", "drop", "number"]),
                st.floats(0, 1),
                st.floats(0, 1),
                st.integers(0, 2**63 - 1),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def apply(content: bytes) -> bytes:
        found = bytearray(content)
        for kind, one, two, number in steps:
            at = min(int(one * len(found)), max(len(found) - 1, 0))
            other = min(at + int(two * 40), len(found))
            if kind == "flip" and found:
                found[at] ^= 1 << number % 8
            elif kind == "cut":
                del found[at:]
            elif kind == "put":
                found[at:at] = TOKENS[number % len(TOKENS)]
            elif kind == "over":
                token = TOKENS[number % len(TOKENS)]
                found[at : at + len(token)] = token
            elif kind == "repeat":
                found[at:at] = found[at:other]
            elif kind == "drop":
                del found[at:other]
            elif kind == "number":
                found[at : at + 4] = struct.pack("<I", number % 2**32)
        return bytes(found)

    return apply


def read_or_refuse(read: Callable[[], dict[str, torch.Tensor]]) -> None:
    tensors, said = {}, ""
    try:
        tensors = read()
    except GeomergeError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1000
    for tensor in tensors.values():
        assert torch.isfinite(tensor.double()).all()


def checkpoint_tensors(file: Path) -> dict[str, torch.Tensor]:
    found = load_checkpoint(file)
    assert all(isinstance(name, str) for name in found.weights)
    return {**found.weights, **{f"sketch/{k}": v for k, v in found.sketch.items()}}


@pytest.mark.parametrize("form", ["geomerge.pt", "bare.pt", "old.pt", "a.safetensors"])
@FUZZ
@given(change=damage())
def test_damaged_networks(tmp_path: Path, form: str, change: Callable[[bytes], bytes]) -> None:
    file = tmp_path / form
    if form in ("bare.pt", "old.pt"):
        torch.save(WEIGHTS, file, _use_new_zipfile_serialization=form != "old.pt")
    else:
        save_checkpoint(file, Checkpoint(WEIGHTS, {"task": "mnist"}, SKETCH))
    file.write_bytes(change(file.read_bytes()))
    read_or_refuse(lambda: checkpoint_tensors(file))


def repacked(content: bytes, entry: str, change: Callable[[bytes], bytes]) -> bytes:
    """Damage one entry of an archive whose sums stand right, so that its reader sees it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            inside = old.read(name)
            new.writestr(name, change(inside) if name.endswith(entry) else inside)
    return made.getvalue()


@FUZZ
@given(change=damage())
def test_damaged_pickles(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "a.pt"
    save_checkpoint(file, Checkpoint(WEIGHTS, {"task": "mnist"}, SKETCH))
    file.write_bytes(repacked(file.read_bytes(), "data.pkl", change))
    read_or_refuse(lambda: checkpoint_tensors(file))


@FUZZ
@given(change=damage())
def test_damaged_headers(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    """The length stands right, so that the damage reaches what the header says."""
    file = tmp_path / "a.safetensors"
    save_checkpoint(file, Checkpoint(WEIGHTS, {"task": "mnist"}, SKETCH))
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + size])
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    read_or_refuse(lambda: checkpoint_tensors(file))


@pytest.mark.parametrize("entry", [None, "x.npy", "y.npy"])
@FUZZ
@given(change=damage())
def test_damaged_arrays(
    tmp_path: Path, entry: str | None, change: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "a.npz"
    rng = np.random.default_rng(0)
    content = npz_bytes(x=rng.normal(size=(30, 2)), y=np.arange(30) % 3)
    file.write_bytes(repacked(content, entry, change) if entry else change(content))

    def read() -> dict[str, torch.Tensor]:
        task = load_task(str(file))
        assert task.classes < 2**20
        return {"x": task.train.inputs.raw, "y": task.train.labels}

    read_or_refuse(read)


@pytest.mark.parametrize(
    "name", ["index.json", "steps.jsonl", "a-000001.safetensors", "b.safetensors"]
)
@FUZZ
@given(change=damage(), t=st.floats(0, 1))
def test_damaged_paths(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], t: float
) -> None:
    folder = tmp_path / "path"
    shutil.rmtree(folder, ignore_errors=True)
    make_path(folder)
    record = {"leg": "a", "step": 1, "norm": 1.0, "distance": 1.0, "damping": None,
              "predicted": 0.1, "measured": None, "length": 1.0, "energy": 0.1}  # fmt: skip
    (folder / "steps.jsonl").write_text(json.dumps(record) + "\n")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    read_or_refuse(lambda: {"w": WeightPath(folder).at(t)})
