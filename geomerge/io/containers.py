"""Validation of weight files: claimed sizes against actual bytes, before any allocation.

Each check reads bytes, headers and lists of contents, and allocates no more than those. A wrong
claim is a ``ValueError`` with a few words, which the caller completes to a sentence.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from geomerge.errors import CheckpointError, type_of
from geomerge.io import paged
from geomerge.io.files import check_regular, parse_json

__all__ = [
    "HOW_TO_SAVE",
    "UnreadTypeError",
    "check_archive",
    "check_plain",
    "check_safetensors",
    "is_mask",
    "safetensors_header",
    "safetensors_shapes",
]

_HEADER = 4 * 2**20  # bytes of a header, or of an archive's pickle: some thirty thousand tensors
_RANK = 32
_BYTES = {  # of an element, by the type's name in safetensors
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
}
_ODD = {  # types that are known and not computed with
    "F8_E4M3": "8-bit floats", "F8_E5M2": "8-bit floats", "F8_E8M0": "8-bit floats",
    "F6_E2M3": "6-bit floats", "F6_E3M2": "6-bit floats", "F4": "4-bit floats",
    "C64": "complex numbers",
}  # fmt: skip
_ENTRIES = 200_000


class UnreadTypeError(ValueError):
    """A file holds numbers of a type that is known and not computed with."""


def check_safetensors(content: bytes) -> dict[str, str]:
    """Hold the header of a safetensors file against its length.

    Args:
        content: The whole file.

    Returns:
        The free metadata of the header.

    Raises:
        ValueError: If the header is longer than the file, no JSON of the format, or claims tensors
            that overlap, leave gaps, lie outside, or are not of the length their shape says.
    """
    _, metadata = safetensors_shapes(io.BytesIO(content), len(content))
    return metadata


def safetensors_header(
    file: Path,
) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str]]:
    """Read the header of a file as :func:`safetensors_shapes` does.

    Args:
        file: The file.

    Raises:
        OSError: If it cannot be read, or is a device or a pipe.
        ValueError: If the header is wrong, see :func:`check_safetensors`.
    """
    check_regular(file)
    with open(file, "rb") as stream:
        return safetensors_shapes(stream, file.stat().st_size)


def safetensors_shapes(
    stream: BinaryIO, total: int
) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str]]:
    """Read the header of a safetensors file and nothing else.

    Args:
        stream: The file, at its beginning.
        total: Its length in bytes.

    Returns:
        By the name of each tensor, in the order in which they lie there, its type as the format
        calls it and its shape; and the free metadata.

    Raises:
        ValueError: If the header is wrong, see :func:`check_safetensors`.
    """
    if total < 8:
        raise ValueError("no header")
    (size,) = struct.unpack("<Q", stream.read(8))
    if size > min(total - 8, _HEADER):
        raise ValueError(f"a header of {size} bytes in a file of {total}")
    header = parse_json(stream.read(size).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("metadata that is no text")
    places = sorted(_safetensors_place(name, entry) for name, entry in header.items())
    end = 0
    for start, stop, name in places:
        if start != end:
            raise ValueError(f"{name[:40]!r} begins at {start}, expected {end}")
        end = stop
    if end != total - 8 - size:
        raise ValueError(f"{end} bytes of tensors claimed, {total - 8 - size} there")
    return {name: (header[name]["dtype"], header[name]["shape"]) for *_, name in places}, metadata


def _safetensors_place(name: str, entry: Any) -> tuple[int, int, str]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:40]!r} is described by no type, shape and place")
    kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(kind, str) and kind in _ODD:
        raise UnreadTypeError(_ODD[kind])
    if not isinstance(kind, str) or kind not in _BYTES:
        raise ValueError(f"{name[:40]!r} is of type {str(kind)[:20]!r}, expected plain numbers")
    if not _counts(shape) or len(shape) > _RANK or not _counts(place) or len(place) != 2:
        raise ValueError(f"{name[:40]!r} has no shape or no place")
    if place[1] - place[0] != math.prod(shape) * _BYTES[kind]:
        raise ValueError(f"{name[:40]!r} is not as long as its shape says")
    return place[0], place[1], name


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**48 for v in value)


def check_archive(archive: zipfile.ZipFile, most: int) -> dict[str, int]:
    """Refuse a zip whose list of contents promises more than a file of its kind can hold.

    Args:
        archive: An open zip.
        most: Largest number of bytes of all contents, unpacked.

    Returns:
        The length of each entry once unpacked, by name.

    Raises:
        ValueError: If a name is there twice, an entry is encrypted, or there is too much.
    """
    entries = archive.infolist()
    if len(entries) > _ENTRIES:
        raise ValueError(f"{len(entries)} entries, expected at most {_ENTRIES}")
    if len({info.filename.lower() for info in entries}) < len(entries):
        raise ValueError("two entries of one name")
    if any(info.flag_bits & 1 for info in entries):
        raise ValueError("encrypted entries")
    total = sum(info.file_size for info in entries)
    if total > most:
        raise ValueError(f"{total} bytes once unpacked, expected at most {most}")
    return {info.filename: info.file_size for info in entries}


HOW_TO_SAVE = "save it again with torch.save(model.state_dict(), ...) or as safetensors"
_SHARES = 32  # tensors may share storage, as tied layers do, but not without end


def check_plain(tensors: Mapping[Any, Any], path: Path, masks: bool = False) -> None:
    """Refuse anything among what a file held that is no plain tensor.

    Args:
        tensors: Tensors that were read, by name.
        path: Name of the file, for messages.
        masks: Whether infinity is allowed in a tensor whose other numbers are all zero, as in the
            causal masks that models of texts keep among their buffers.

    Raises:
        CheckpointError: If something is no tensor with a name, is spread over fewer numbers than
            it claims, or is not finite.
    """
    total, there = 0, 0
    stored = set()
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path} has a tensor named {str(name)[:60]!r}, expected names as text; "
                f"{HOW_TO_SAVE}"
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds {type_of(value)} under {name[:60]!r}, expected only "
                f"tensors; {HOW_TO_SAVE}"
            )
        storage = value.untyped_storage()
        if value.numel() * value.element_size() > _SHARES * storage.nbytes():
            raise CheckpointError(
                f"{name[:60]!r} of {path} claims {value.numel()} numbers and has "
                f"{storage.nbytes() // value.element_size()}; {HOW_TO_SAVE}"
            )
        total += value.numel() * value.element_size()
        if storage.data_ptr() not in stored:
            stored.add(storage.data_ptr())
            there += storage.nbytes()
        if total > _SHARES * there:
            raise CheckpointError(
                f"the tensors of {path} claim {total} bytes and share {there}; {HOW_TO_SAVE}"
            )
        if not (masks and is_mask(value)):
            _check_finite(value, name, path)


def is_mask(value: Tensor) -> bool:
    """Return whether a tensor holds infinity and otherwise only zeros, and no NaN."""
    if not value.is_floating_point():
        return False
    whole = True  # no infinity so far
    for part in _parts(value):
        finite = part.isfinite()
        if part.isnan().any() or (part[finite] != 0).any():
            return False
        whole = whole and bool(finite.all())
    return not whole


def _parts(value: Tensor) -> Iterator[Tensor]:
    """Yield the numbers of a tensor in parts, for which no copy of all is made."""
    for (part,) in paged.in_parts(value.detach().reshape(-1)):
        yield part


def _check_finite(value: Tensor, name: str, path: Path) -> None:
    if not value.is_floating_point():
        return
    finite = all(bool(torch.isfinite(part).all()) for part in _parts(value))
    if not finite:
        raise CheckpointError(
            f"the weights {name[:60]!r} of {path} are not all finite (NaN or infinity); train or "
            "save the network again"
        )
