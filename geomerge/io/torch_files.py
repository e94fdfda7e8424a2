"""Files of ``torch.save`` and ``pickle.dump`` as tensors and inert values, without unpickling.

The pickle is read as inert values (:mod:`geomerge.io.pickles`). Tensors are made of the bytes of
their storages here, after what is claimed of them was held against the bytes that are there.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomerge.io.containers import check_archive
from geomerge.io.pickles import Storage, StoredArray, StoredTensor, read_pickle

__all__ = ["TorchFile", "read_torch"]

_MAGIC = 0x1950A86A20F9469CFC6C  # magic number of the form before archives
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
        "bool", "uint16", "uint32", "uint64",
    )
}  # fmt: skip


class TorchFile:
    """Content of a file.

    Args:
        content: The object that was saved: dictionaries, lists and plain values, with
            :class:`~geomerge.io.pickles.StoredTensor`, ``StoredArray`` and ``Foreign`` in them.
        storages: Bytes of the storages by their keys.
        swapped: Whether numbers have their bytes the other way round than this machine.
    """

    def __init__(
        self, content: Any, storages: Mapping[str, memoryview], swapped: bool = False
    ) -> None:
        self.content = content
        self._storages = storages
        self._swapped = swapped
        self._made: dict[str, Tensor] = {}

    def tensor(self, stored: StoredTensor | StoredArray) -> Tensor:
        """Return a stored tensor or array as a tensor of its own type.

        Tensors that shared a storage do so again.

        Raises:
            ValueError: If its type is none that is computed with, or it lies outside its storage.
        """
        if isinstance(stored, StoredArray):
            return _tensor_of_array(stored)
        if stored.kind not in _DTYPES:
            raise ValueError(f"a tensor of type {stored.kind}")
        dtype, shape, stride = _DTYPES[stored.kind], stored.shape, stored.stride
        numbers = self._bytes(stored.storage)
        numbers = numbers[: len(numbers) // dtype.itemsize * dtype.itemsize]
        last = stored.offset + sum((s - 1) * t for s, t in zip(shape, stride, strict=True))
        if math.prod(shape) == 0:
            return torch.empty(shape, dtype=dtype)
        if (last + 1) * dtype.itemsize > len(numbers):
            raise ValueError("a tensor past the end of its storage")
        if self._swapped and dtype.itemsize > 1:
            numbers = numbers.view(-1, dtype.itemsize).flip(1).reshape(-1)
        return numbers.view(dtype).as_strided(shape, stride, stored.offset)

    def _bytes(self, storage: Storage) -> Tensor:
        if storage.key not in self._made or storage.content is not None:
            raw = self._storages[storage.key] if storage.content is None else storage.content
            whole = bytearray(raw)  # a copy that may be written to
            made = torch.frombuffer(whole, dtype=torch.uint8) if whole else torch.empty(0).byte()
            if storage.content is not None:
                return made
            self._made[storage.key] = made
        return self._made[storage.key]


def read_torch(content: bytes) -> TorchFile:
    """Read a file of ``torch.save`` (either form) or ``pickle.dump``.

    Args:
        content: The whole file.

    Returns:
        Content of the file; its tensors are made on demand.

    Raises:
        ValueError: If it is damaged, packed, or claims more than it has.
    """
    if content[:2] != b"PK":
        return _read_pickles(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = check_archive(archive, len(content))
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("packed entries, which torch.save does not write")
        if archive.comment:
            raise ValueError("bytes after the archive's list")
        top = next(iter(sizes), "").partition("/")[0]
        if any(not name.startswith(f"{top}/") for name in sizes):
            raise ValueError("entries of more than one folder")
        if f"{top}/data.pkl" not in sizes:
            raise ValueError("no data.pkl")
        found, storages = read_pickle(io.BytesIO(_entry(archive, content, f"{top}/data.pkl")))
        parts: dict[str, memoryview] = {}
        for storage in storages:
            name = f"{top}/data/{storage.key}"
            there = sizes.get(name)
            if there != storage.size:
                raise ValueError(f"a storage of {storage.size} bytes claimed, {there or 0} there")
            parts[storage.key] = _entry(archive, content, name)
        order = f"{top}/byteorder"
        written = bytes(_entry(archive, content, order)) if order in sizes else b"little"
    return TorchFile(found, parts, written.decode("ascii", "replace") != sys.byteorder)


def _entry(archive: zipfile.ZipFile, content: bytes, name: str) -> memoryview:
    """Return the bytes of a stored entry, where they lie in the file."""
    info = archive.getinfo(name)
    header = content[info.header_offset : info.header_offset + 30]
    if header[:4] != b"PK\x03\x04":
        raise ValueError("an entry is not where the archive's list says")
    lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = info.header_offset + 30 + sum(lengths)
    part = memoryview(content)[start : start + info.file_size]
    if len(part) != info.file_size or (info.CRC and zlib.crc32(part) != info.CRC):
        raise ValueError(f"the entry {name[-40:]!r} is damaged")  # torch may leave the sum out
    return part


def _read_pickles(content: bytes) -> TorchFile:
    """Read pickles one after the other: the older form of ``torch.save``, or one object alone."""
    stream = io.BytesIO(content)
    storages: list[Storage] = []
    first, found = read_pickle(stream)
    storages += found
    if first != _MAGIC:
        if storages or len(content) != stream.tell():
            raise ValueError("bytes after its pickle")
        return TorchFile(first, {})
    for _ in range(3):  # a version, sizes of types, the object
        first, found = read_pickle(stream)
        storages += found
    order, _ = read_pickle(stream)
    if not isinstance(order, list) or not all(isinstance(key, str) for key in order):
        raise ValueError("no list of storages")
    sizes = {storage.key: storage.size for storage in storages}
    if sorted(order) != sorted(sizes):
        raise ValueError("storages named that are not there")
    left = len(content) - stream.tell()
    if sum(size + 8 for size in sizes.values()) != left:
        raise ValueError(f"{sum(sizes.values())} bytes of tensors claimed, {left} there")
    parts, at = {}, stream.tell()
    for key in order:
        parts[key] = memoryview(content)[at + 8 : at + 8 + sizes[key]]
        at += 8 + sizes[key]
    return TorchFile(first, parts)


def _tensor_of_array(stored: StoredArray) -> Tensor:
    kind = stored.kind.lstrip("|=")
    if stored.content is None or kind.lstrip("<>")[:1] not in ("f", "i", "u", "b"):
        raise ValueError(f"an array of type {kind or 'unknown'}")
    try:
        dtype = np.dtype(kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an array of type {kind[:20]}") from error
    if dtype.itemsize > 8 or math.prod(stored.shape) * dtype.itemsize != len(stored.content):
        raise ValueError("an array that is not as long as its shape says")
    array = np.frombuffer(stored.content, dtype)
    if stored.fortran:
        array = array.reshape(stored.shape[::-1]).T
    array = array.reshape(stored.shape)
    return torch.from_numpy(np.ascontiguousarray(array.astype(dtype.newbyteorder("="))))
