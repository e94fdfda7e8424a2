"""NumPy archives (``.npz``), read with a limit on the decompressed size."""

from __future__ import annotations

import ast
import io
import math
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from geomerge.io.containers import check_archive

__all__ = ["read_npz"]

_HEADER = 10_000  # bytes, NumPy's own limit
_RANK = 32
# Images pack to a tenth or so, and sets of small ones may be mostly background.
_RATIO = 100
_SMALL_ARCHIVE = 16 * 2**20


def read_npz(
    content: bytes, names: Collection[str] | None = None
) -> tuple[dict[str, np.ndarray[Any, Any]], list[str]]:
    """Read some arrays of numbers.

    Args:
        content: The whole file.
        names: Names of the arrays to read, where they are there; None reads all.

    Returns:
        The arrays by name, and the names of all that the file holds.

    Raises:
        ValueError: If the file claims more than it has, or one of the arrays is none of numbers.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        check_archive(archive, max(_SMALL_ARCHIVE, _RATIO * len(content)))
        there = [name.removesuffix(".npy") for name in archive.namelist()]
        for name in there:
            if names is None or name in names:
                _check_array(archive, f"{name}.npy")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in there if names is None or name in names}, there


def _check_array(archive: zipfile.ZipFile, name: str) -> None:
    """Hold an array's header against the length of its entry."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as stream:
        start = stream.read(12)
        if start[:6] != b"\x93NUMPY" or len(start) < 12 or start[6] not in (1, 2, 3):
            raise ValueError(f"{name} is no array")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(start[8 : 8 + width], "little")
        if length > _HEADER:
            raise ValueError(f"{name} has a header of {length} bytes")
        header = _literal((start + stream.read(length))[8 + width : 8 + width + length])
    kind, shape = header.get("descr"), header.get("shape")
    if not isinstance(kind, str) or not isinstance(shape, tuple) or not _counts(shape):
        raise ValueError(f"{name} is no plain array")
    number = np.dtype(kind)
    if number.hasobject:
        raise ValueError(f"{name} holds values of type {kind[:20]!r}, expected plain arrays")
    if math.prod(shape) * number.itemsize != size - 8 - width - length:
        raise ValueError(f"{name} is not as long as its shape says")


def _counts(shape: tuple[Any, ...]) -> bool:
    return len(shape) <= _RANK and all(type(v) is int and 0 <= v < 2**48 for v in shape)


def _literal(header: bytes) -> Mapping[str, Any]:
    try:
        found = ast.literal_eval(header.decode("latin1").strip())
    except (SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError("an array's header is damaged") from error
    if not isinstance(found, dict):
        raise ValueError("an array's header is damaged")
    return found
