"""Packed images -> one tensor, none unpacked that claims far more than its bytes can hold."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomerge.errors import TaskError

__all__ = ["IMAGES", "LARGEST_IMAGE", "RATIO", "images_in", "stack_images"]

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
