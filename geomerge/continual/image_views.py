"""Views of images: those that a map of features is fitted on, and those that keep the class.

Statistics of five hundred images in fourteen hundred features are far from those of their class.
Images that are mirrored or shifted a little are of the same class and cost a pass forwards.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from geomerge.networks.batches import Batch

__all__ = ["VIEWS", "class_views", "map_views"]

VIEWS = ("none", "shifted", "mirrored")
_SIDES = 16  # images are shifted by one of so many parts of their side


def map_views(x: Batch) -> list[Batch]:
    """Return square images mirrored and turned by quarters; no views of other inputs.

    More inputs of other kinds make a better map for classes that are gone: on CIFAR-10 these four
    views brought a point and a half.

    Args:
        x: Inputs.
    """
    if _square(x):
        return [x.flip(3), *(torch.rot90(x, k, (2, 3)) for k in (1, 2, 3))]
    return []


def class_views(x: Batch, kind: str) -> list[Batch]:
    """Return views of square images that are of the same classes; no views of other inputs.

    Args:
        x: Inputs.
        kind: One of :data:`VIEWS`: ``"shifted"`` by a sixteenth of the side in four directions,
            ``"mirrored"`` as well, half of the shifted ones included, or ``"none"``.
    """
    if kind == "none" or not _square(x):
        return []
    other = x.flip(3) if kind == "mirrored" else x
    by = max(1, round(x.shape[3] / _SIDES))
    shifted = [_shifted(x, by, 0), _shifted(other, -by, 0), _shifted(x, 0, by)]
    return [*([other] if kind == "mirrored" else []), *shifted, _shifted(other, 0, -by)]


def _square(x: Batch) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.dim() == 4 and x.shape[-1] == x.shape[-2] > 1


def _shifted(
    x: Tensor,  # (B, channels, side, side)
    down: int,
    right: int,
) -> Tensor:  # (B, channels, side, side)
    """Return shifted images, reflected where they end."""
    by = max(abs(down), abs(right))
    padded = torch.nn.functional.pad(x, (by, by, by, by), mode="reflect")
    side = x.shape[3]
    return padded[:, :, by - down : by - down + side, by - right : by - right + side]
