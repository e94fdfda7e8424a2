"""Data files and path folders made to do harm: each must be refused in one sentence, at once."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

__all__ = ["HOSTILE_IMAGES", "HOSTILE_NPZ", "HOSTILE_PATHS", "make_path", "npz_bytes"]

_HUGE = 10**9
_BOMB = 64 * 2**20


def npz_bytes(**arrays: Any) -> bytes:
    """Return an ``.npz``."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _good() -> dict[str, Any]:
    return {"x": np.ones((30, 2), np.float32), "y": np.arange(30) % 3}


def _raw_npz(packed: bool = False, encrypted: bool = False, **entries: bytes) -> bytes:
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, content in entries.items():
                archive.writestr(f"{name.rstrip('_')}.npy", content)
    made = bytearray(buffer.getvalue())
    if encrypted:
        made[made.find(b"PK\x01\x02") + 8] |= 1
    return bytes(made)


def _npy(shape: str, kind: str = "'<f4'", data: bytes = bytes(4)) -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _labels(values: Any) -> Callable[[], bytes]:
    return lambda: npz_bytes(x=_good()["x"], y=values)


def _inputs(values: Any) -> Callable[[], bytes]:
    return lambda: npz_bytes(x=values, y=_good()["y"])


HOSTILE_NPZ: dict[str, Callable[[], bytes]] = {
    "pickled objects": _inputs(np.array([{}] * 30, dtype=object)),
    "a packed bomb": lambda: _raw_npz(
        packed=True, x=_npy(f"({_BOMB // 4}, 1)", data=bytes(_BOMB)), y=_npy("(1,)")
    ),
    "10^9 rows in four bytes": lambda: _raw_npz(x=_npy(f"({_HUGE}, 1)"), y=_npy("(1,)")),
    "a negative shape": lambda: _raw_npz(x=_npy("(-1, 1)"), y=_npy("(1,)")),
    "a shape past 2^63": lambda: _raw_npz(x=_npy("(2**62, 8)"), y=_npy("(1,)")),
    "a shape without end": lambda: _raw_npz(x=_npy("(" * 4000), y=_npy("(1,)")),
    "a record": lambda: _raw_npz(x=_npy("(1, 1)", "[('a', '<f4')]"), y=_npy("(1,)")),
    "a huge header": lambda: _raw_npz(x=_npy("(1, 1)" + " " * 50_000), y=_npy("(1,)")),
    "no header": lambda: _raw_npz(x=b"numbers", y=_npy("(1,)")),
    "one name twice": lambda: _raw_npz(x=_npy("(1, 1)"), x_=_npy("(1, 1)"), y=_npy("(1,)")),
    "encrypted": lambda: _raw_npz(encrypted=True, x=_npy("(1, 1)"), y=_npy("(1,)")),
    "not a number": _inputs(np.full((30, 2), np.nan)),
    "infinity": _inputs(np.full((30, 2), np.inf)),
    "numbers past float32": _inputs(np.full((30, 2), 1e300)),
    "complex numbers": _inputs(np.ones((30, 2), complex)),
    "no numbers": _inputs(np.ones((30, 0))),
    "one number": _inputs(np.float32(1)),
    "a class numbered 10^15": _labels(np.full(30, 10**15)),
    "a class numbered -1": _labels(np.full(30, -1)),
    "labels in a table": _labels(np.zeros((30, 2), int)),
    "labels as text": _labels(np.array(["a"] * 30)),
    "half a file": lambda: npz_bytes(**_good())[:300],
    "nothing": lambda: b"",
}


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _png(width: int, height: int, packed: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", packed), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HOSTILE_IMAGES: dict[str, Callable[[], bytes]] = {
    "a packed bomb": lambda: _png(8000, 8000, zlib.compress(bytes(8001 * 8000))),
    "10^9 pixels": lambda: _png(40_000, 40_000, b""),
    "a damaged image": lambda: _png(8, 8, b"\xff" * 40),
    "another format": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
    "nothing": lambda: b"",
}


def make_path(folder: Path) -> dict[str, Any]:
    """Write a path of three points between two networks of two layers, and return its index."""
    folder.mkdir(parents=True, exist_ok=True)
    for end, value in (("a", 0.0), ("b", 1.0)):
        weights = {
            "0.weight": torch.full((3, 2), value), "0.bias": torch.full((3,), value),
            "2.weight": torch.full((2, 3), value), "2.bias": torch.full((2,), value),
        }  # fmt: skip
        safetensors.torch.save_file(weights, str(folder / f"{end}.safetensors"))
    delta = {"delta": torch.full((17,), 0.5)}
    safetensors.torch.save_file(delta, str(folder / "a-000001.safetensors"))
    stops = [
        {"t": 0.0, "file": None, "base": "a"},
        {"t": 0.5, "file": "a-000001.safetensors", "base": "a"},
        {"t": 1.0, "file": None, "base": "b"},
    ]
    index = {
        "stops": stops, "ends": ["a", "b"], "crossover": 0.5, "lengths": {"a": 1.0}, "meta": {},
    }  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "steps.jsonl").write_text("")
    return index


def _index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        index = make_path(folder)
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return make


def _middle(**values: Any) -> Callable[[Path], None]:
    return _index(lambda index: index["stops"][1].update(values))


def _text(name: str, text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        make_path(folder)
        (folder / name).write_text(text)

    return make


def _linked(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        make_path(folder)
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return make


def _point(**tensors: torch.Tensor) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        make_path(folder)
        safetensors.torch.save_file(tensors, str(folder / "a-000001.safetensors"))

    return make


def _pipe(folder: Path) -> None:
    make_path(folder)
    (folder / "a-000001.safetensors").unlink()
    os.mkfifo(folder / "a-000001.safetensors")


HOSTILE_PATHS: dict[str, Callable[[Path], None]] = {
    "a point above the folder": _middle(file="../outside.safetensors"),
    "a point by its whole name": _middle(file="/etc/passwd"),
    "a point that is a number": _middle(file=7),
    "a base that is no end": _middle(base="c"),
    "a stop past the end": _middle(t=1.5),
    "a stop that is no number": _middle(t=float("nan")),
    "more about a stop": _middle(more=1),
    "stops out of order": _index(lambda index: index["stops"].reverse()),
    "no stops": _index(lambda index: index.update(stops=[])),
    "an end above the folder": _index(lambda index: index.update(ends=["../a", "b"])),
    "one end": _index(lambda index: index.update(ends=["a"])),
    "a crossover past the end": _index(lambda index: index.update(crossover=7)),
    "no crossover": _index(lambda index: index.pop("crossover")),
    "an index without end": _text("index.json", '{"stops":' + "[" * 100_000),
    "an index that is a list": _text("index.json", "[]"),
    "steps without end": _text("steps.jsonl", "[" * 100_000),
    "steps that are numbers": _text("steps.jsonl", "1\n2\n"),
    "a point behind a link": _linked("a-000001.safetensors"),
    "an end behind a link": _linked("b.safetensors"),
    "an index behind a link": _linked("index.json"),
    "a point that is a pipe": _pipe,
    "a point of another length": _point(delta=torch.ones(3)),
    "a point of whole numbers": _point(delta=torch.ones(17, dtype=torch.int64)),
    "a point that is not finite": _point(delta=torch.full((17,), float("inf"))),
    "a point of another name": _point(gamma=torch.ones(17)),
    "ends of two shapes": _text("b.safetensors", ""),
}
