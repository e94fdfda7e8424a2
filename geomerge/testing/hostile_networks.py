"""Files of weights made to do harm: each must be refused in one sentence, at once."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["HOSTILE_SAFETENSORS", "HOSTILE_TORCH", "safetensors_bytes", "torch_archive"]

_HUGE = 10**9
_BOMB = 64 * 2**20  # zeros, which pack to a thousandth


def _op(value: Any) -> bytes:
    """Return the pickle opcodes of a plain value."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(_op, value)) + b"t"
        case bytes():
            return value  # opcodes already
    raise TypeError(type(value))


def _call(name: str, *given: Any) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n" + _op(given) + b"R"


def _storage(
    kind: str = "FloatStorage", key: str = "0", length: int = 1, old: bool = False
) -> bytes:
    name = f"ctorch\n{kind}\n".encode()
    claim = ("storage", name, key, "cpu", length)
    return _op((*claim, None) if old else claim) + b"Q"


def _tensor(
    storage: bytes | None = None,
    size: tuple[int, ...] = (1,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
) -> bytes:
    hooks = _call("collections OrderedDict")
    return _call(
        "torch._utils _rebuild_tensor_v2", storage or _storage(), offset, size, stride, False, hooks
    )


def _state(*pairs: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(pairs) + b"u."


def _weight(tensor: bytes) -> bytes:
    return _state(_op("fc.weight"), tensor)


def torch_archive(
    pickle: bytes, more: dict[str, bytes] | None = None, packed: bool = False
) -> bytes:
    """Return a ``.pt`` of a pickle's opcodes and one storage of four bytes."""
    entries = {"data.pkl": pickle, "byteorder": b"little", "data/0": bytes(4), "version": b"3\n"}
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in {**entries, **(more or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _twice() -> bytes:
    buffer = io.BytesIO(torch_archive(_weight(_tensor())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("archive/data/0", bytes(4))
    return buffer.getvalue()


def _overlapping() -> bytes:
    """Return an archive whose list says of every entry that it is the whole file."""
    content = bytearray(torch_archive(_weight(_tensor())))
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 20 : at + 28] = struct.pack("<II", len(content), len(content))
        at = content.find(b"PK\x01\x02", at + 4)
    return bytes(content)


def _nested_keys() -> bytes:
    """Return a dictionary whose key takes 2^40 steps to hash."""
    return b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 40 + b"Ns."


def _old(pickle: bytes, left: bytes = bytes(12)) -> bytes:
    magic, version = 0x1950A86A20F9469CFC6C, 1001
    start = [b"\x80\x02" + _op(x) + b"." for x in (magic, version)]
    order = b"\x80\x02](" + _op("0") + b"e."
    return b"".join([*start, b"\x80\x02}.", pickle, order, left])


def _saved(value: Any, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def _sparse() -> torch.Tensor:
    return torch.sparse_coo_tensor(
        torch.tensor([[0]]), torch.ones(1), (_HUGE,), check_invariants=False
    )


_CODE = b"\x80\x02cos\nsystem\n" + _op(("true",)) + b"R."

HOSTILE_TORCH: dict[str, Callable[[], bytes]] = {
    "code": lambda: _CODE,
    "code in an archive": lambda: torch_archive(_CODE),
    "code in the old form": lambda: _old(_CODE),
    "code as an extension": lambda: torch_archive(b"\x80\x02\x82\x01."),
    "a script": lambda: torch_archive(
        b"\x80\x02c__torch__\nNet\n)\x81.", {"constants.pkl": b"\x80\x02).", "code/net.py": b"x"}
    ),
    "a module": lambda: _saved(torch.nn.Linear(2, 2)),
    "a huge bytearray": lambda: torch_archive(_weight(_call("__builtin__ bytearray", 100 * _HUGE))),
    "keys that never end": lambda: torch_archive(_nested_keys()),
    "a million operations": lambda: torch_archive(b"\x80\x02](" + b"N" * 10**6 + b"e."),
    "a long pickle": lambda: torch_archive(b"\x80\x02" + b"N0" * 2**22 + b"."),
    "attributes": lambda: torch_archive(
        b"\x80\x02" + _call("collections OrderedDict") + b"}(" + _op("keys") + b"Nub."
    ),
    "a storage of 10^9": lambda: torch_archive(_weight(_tensor(_storage(length=_HUGE)))),
    "a storage of -1": lambda: torch_archive(_weight(_tensor(_storage(length=-1)))),
    "a storage that is not there": lambda: torch_archive(_weight(_tensor(_storage(key="7")))),
    "two lengths of one storage": lambda: torch_archive(
        _state(_op("a"), _tensor(), _op("b"), _tensor(_storage(length=2)))
    ),
    "an old storage of 10^9": lambda: _old(_weight(_tensor(_storage(length=_HUGE, old=True)))),
    "an old storage left out": lambda: _old(_weight(_tensor(_storage(key="7", old=True)))),
    "10^9 numbers in four bytes": lambda: torch_archive(_weight(_tensor(None, (_HUGE,), (0,)))),
    "10^9 old numbers in four bytes": lambda: _old(
        _weight(_tensor(_storage(old=True), (_HUGE,), (0,))), struct.pack("<q", 1) + bytes(4)
    ),
    "numbers past the end": lambda: torch_archive(_weight(_tensor(None, (1,), (1,), 9))),
    "a negative shape": lambda: torch_archive(_weight(_tensor(None, (-1,), (1,)))),
    "a shape past 2^63": lambda: torch_archive(_weight(_tensor(None, (2**62, 8), (0, 0)))),
    "halves shared a thousand times": lambda: torch_archive(
        _state(
            *(
                _op(f"w{k}") + _tensor(_storage("HalfStorage", length=2), (2,), (1,))
                for k in range(1000)
            )
        )
    ),
    "quantised": lambda: torch_archive(
        _weight(_call("torch._utils _rebuild_qtensor", _storage("QInt8Storage", length=4)))
    ),
    "sparse": lambda: _saved({"fc.weight": _sparse()}),
    "complex": lambda: _saved({"fc.weight": torch.ones(2, dtype=torch.complex64)}),
    "on no device": lambda: _saved({"fc.weight": torch.ones(_HUGE, device="meta")}),
    "no tensors": lambda: _saved({}),
    "a list": lambda: _saved([torch.ones(2)]),
    "numbers beside tensors": lambda: _saved({"fc.weight": torch.ones(2), "epoch": 3}),
    "not a number": lambda: _saved({"fc.weight": torch.tensor([float("nan")])}),
    "infinity": lambda: _saved({"fc.weight": torch.tensor([float("-inf")])}),
    "names that are no text": lambda: torch_archive(_state(b"X\x02\0\0\0\xff\xfe", _tensor())),
    "two entries of one name": _twice,
    "entries over each other": _overlapping,
    "a packed bomb": lambda: torch_archive(
        _weight(_tensor(_storage(length=_BOMB // 4))), {"data/0": bytes(_BOMB)}, packed=True
    ),
    "metadata without end": lambda: torch_archive(
        _state(_op("geomerge"), _op('{"a":' + "[" * 100_000), _op("state_dict"), b"}")
    ),
    "half a file": lambda: _saved({"fc.weight": torch.ones(100)})[:700],
    "nothing": lambda: b"",
}


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors file of any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(shape: Any, place: Any, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": place}


def _one(shape: Any, place: Any, data: int = 4, kind: str = "F32") -> Callable[[], bytes]:
    return lambda: safetensors_bytes({"fc.weight": _entry(shape, place, kind)}, bytes(data))


def _with_meta(text: str) -> Callable[[], bytes]:
    header = {"__metadata__": {"geomerge": text}, "fc.weight": _entry([1], [0, 4])}
    return lambda: safetensors_bytes(header, bytes(4))


HOSTILE_SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "a header past the end": lambda: struct.pack("<Q", 2**40) + b"{}",
    "a header of eight gigabytes": lambda: struct.pack("<Q", 2**33) + b"{" * 4096,
    "places past the end": _one([2], [0, 8]),
    "places before the start": _one([1], [-4, 0]),
    "10^9 numbers in four bytes": _one([_HUGE], [0, 4]),
    "10^9 numbers claimed": _one([_HUGE], [0, 4 * _HUGE]),
    "a negative shape": _one([-1], [0, 4]),
    "a shape past 2^63": _one([2**62, 2**62], [0, 4]),
    "a shape that is no number": _one([1.0], [0, 4]),
    "an unknown type": _one([1], [0, 4], kind="F5"),
    "a type that is no text": lambda: safetensors_bytes(
        {"w": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "complex": _one([1], [0, 8], 8, "C64"),
    "a gap": lambda: safetensors_bytes(
        {"a": _entry([1], [0, 4]), "b": _entry([1], [8, 12])}, bytes(12)
    ),
    "tensors over each other": lambda: safetensors_bytes(
        {"a": _entry([2], [0, 8]), "b": _entry([2], [4, 12])}, bytes(12)
    ),
    "bytes after the last": _one([1], [0, 4], 64),
    "one name twice": lambda: safetensors_bytes(
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "a header that is no text": lambda: safetensors_bytes(b'{"\xff\xfe":1}'),
    "a header without end": lambda: safetensors_bytes(b"[" * 1_000_000),
    "a header that is a list": lambda: safetensors_bytes([]),
    "metadata that is no text": lambda: safetensors_bytes({"__metadata__": {"a": [1]}}),
    "geomerge's metadata without end": _with_meta("[" * 100_000),
    "geomerge's metadata of other types": _with_meta('{"architecture": ["mlp"]}'),
    "geomerge's metadata a number": _with_meta("1" * 5000),
    "no tensors": lambda: safetensors_bytes({}),
    "not a number": lambda: safetensors_bytes(
        {"fc.weight": _entry([1], [0, 4])}, struct.pack("<f", float("nan"))
    ),
    "a sketch that is not finite": lambda: safetensors_bytes(
        {"fc.weight": _entry([1], [0, 4]), "geomerge.sketch/diagonal": _entry([1], [4, 8])},
        bytes(4) + struct.pack("<f", float("inf")),
    ),
    "an archive": lambda: torch_archive(_weight(_tensor())),
    "nothing": lambda: b"",
}
