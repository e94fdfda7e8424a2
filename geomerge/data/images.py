"""Decoding of compressed images into one tensor, with a limit on the decompressed size."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomerge.errors import TaskError

__all__ = ["IMAGES", "LARGEST_IMAGE", "RATIO", "images_in", "resized", "stack_images"]

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LARGEST_IMAGE = 16 * 2**20  # bytes of one packed image; more is no image of a data set
RATIO = 200  # largest ratio of an image's pixels to its packed bytes
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


def stack_images(
    items: Iterable[tuple[bytes, int, str]],
    source: str,
    size: int | None = None,
    channels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Unpack images of one size.

    Args:
        items: Bytes, class and name of each.
        source: Name of their source, for messages.
        size: Side in pixels to which they are resized; None leaves them as they are.
        channels: Number of channels, 1 or 3; None takes grey images as grey if all are.

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
            image: Image.Image = Image.open(io.BytesIO(content), formats=_FORMATS)
            if image.width * image.height > max(_SMALL, RATIO * len(content)):
                raise ValueError("far more pixels than bytes")
            grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
            image = image.convert("L" if grey else "RGB")
            if size is not None:  # as torchvision resizes images of PIL
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
        except Exception as error:  # each format raises its own types
            raise TaskError(f"{name} in {source} is not a readable image; remove it") from error
        if images and pixels.shape[:2] != images[0].shape[:2]:
            raise TaskError(
                f"{name} in {source} has shape {pixels.shape}, expected {images[0].shape} as the "
                "first; bring all images to one size with `image_size`"
            )
        images.append(pixels)
        labels.append(label)
    if not images:
        raise TaskError(f"no images in {source}, expected CLASS/image.png; check the folder")
    if len({pixels.ndim for pixels in images}) > 1:  # grey ones among coloured ones
        images = [p if p.ndim == 3 else np.repeat(p[:, :, None], 3, axis=2) for p in images]
    x = torch.from_numpy(np.stack(images))
    x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(labels)


def resized(
    x: Tensor,  # (N, channels, height, width)
    size: int | None,
    channels: int | None,
    source: str,
) -> Tensor:  # (N, channels, size, size)
    """Return images of arrays in another size and with other channels.

    Args:
        x: Images, bytes or floats.
        size: Side in pixels; None leaves it.
        channels: Number of channels, 1 or 3; None leaves it. A fourth, of transparency, goes.
        source: Name of their source, for messages.

    Raises:
        TaskError: If they are no images.
    """
    if size is None and channels is None:
        return x
    if x.dim() != 4 or x.shape[1] not in (1, 3, 4):
        raise TaskError(
            f"{source} has inputs of shape {tuple(x.shape[1:])}, expected images (channels, "
            "height, width) for `image_size` and `channels`; leave these out"
        )
    from torchvision.transforms.v2 import functional

    if channels is not None and x.shape[1] != channels:
        colours = x[:, :3] if x.shape[1] == 4 else x
        x = functional.rgb_to_grayscale(colours) if channels == 1 else colours
        x = x.expand(-1, channels, -1, -1).contiguous()
    if size is not None and x.shape[2:] != (size, size):
        x = functional.resize(x, [size, size], antialias=True)
    return x
