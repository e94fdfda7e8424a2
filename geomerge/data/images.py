"""Packed images -> one tensor, none unpacked that claims far more than its bytes can hold."""

from __future__ import annotations

import ast
import io
import math
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomerge.errors import TaskError
from geomerge.io.containers import check_archive
from geomerge.io.files import read_regular

__all__ = ["IMAGES", "LARGEST_IMAGE", "RATIO", "images_in", "read_npz", "stack_images"]

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LARGEST_IMAGE = 16 * 2**20  # bytes of one packed image; more is no image of a data set
RATIO = 200  # of an image's pixels to its packed bytes
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_SMALL = 2**22  # pixels that an image may have however well it packs


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    # A device or a pipe of that name has no end.
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGES and p.is_file() and p.stat().st_size < LARGEST_IMAGE
    )


def stack_images(items: Iterable[tuple[bytes, int, str]], source: str) -> tuple[Tensor, Tensor]:
    """Unpack images of one size.

    Args:
        items: Bytes, class and name of each.
        source: Where they are from, for messages.

    Returns:
        Pixels, shape (N, channels, height, width), and classes, (N,).

    Raises:
        TaskError: If there are none, or one is unreadable or of another size than the first.
    """
    from PIL import Image

    images: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    for content, label, name in items:
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            if image.width * image.height > max(_SMALL, RATIO * len(content)):
                raise ValueError("far more pixels than bytes")
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
        except Exception as error:  # each format raises its own types
            raise TaskError(f"{name} in {source} is not a readable image; remove it") from error
        if images and pixels.shape != images[0].shape:
            raise TaskError(
                f"{name} in {source} has shape {pixels.shape}, expected {images[0].shape} as the "
                "first; bring all images to one size"
            )
        images.append(pixels)
        labels.append(label)
    if not images:
        raise TaskError(f"no images in {source}, expected CLASS/image.png; check the folder")
    x = torch.from_numpy(np.stack(images))
    x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(labels)


_HEADER = 10_000  # bytes, NumPy's own limit
_RANK = 32
# Images pack to a tenth or so, and sets of small ones may be mostly background.
_RATIO = 100
_SMALL_ARCHIVE = 16 * 2**20


def read_npz(
    file: Path, names: Collection[str]
) -> tuple[dict[str, np.ndarray[Any, Any]], list[str]]:
    """Read some arrays of numbers.

    Args:
        file: The ``.npz``.
        names: Of the arrays to read, where they are there.

    Returns:
        The arrays by name, and the names of all that the file holds.

    Raises:
        ValueError: If the file claims more than it has, or one of the arrays is none of numbers.
        OSError: If it cannot be read.
    """
    content = read_regular(file)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        check_archive(archive, max(_SMALL_ARCHIVE, _RATIO * len(content)))
        there = [name.removesuffix(".npy") for name in archive.namelist()]
        for name in there:
            if name in names:
                _check_array(archive, f"{name}.npy")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in there if name in names}, there


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
