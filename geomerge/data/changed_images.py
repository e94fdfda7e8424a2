"""Random shifts and flips of images, for walks on few of them.

Targets are the outputs of a teacher on the changed images, so that what an image shows may change
too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.networks.batches import Batch

__all__ = ["AUGMENT", "ChangedImages", "changed_images"]

AUGMENT = ("shifts", "flips")
_SHARE = 8  # shifts go up to one part in so many of the width


class ChangedImages:
    """Shifts of all images of a batch by up to an eighth of their width, and flips of half of them.

    What a shift uncovers is zero: the mean of normalised images, black in others.

    Args:
        kind: ``"shifts"``, or ``"flips"`` for flips from left to right as well.
        seed: Seed of the draws.

    Example:
        >>> import torch
        >>> x = torch.rand(4, 3, 32, 32)
        >>> changed = ChangedImages("flips", seed=0)(x, 0)
        >>> changed.shape == x.shape, changed.equal(x)
        (True, False)
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._flips, self._seed = kind == "flips", seed

    def __call__(self, x: Batch, number: int) -> Batch:
        """Return a batch of changed images, the same for the same number.

        Args:
            x: Images, shape (B, C, H, W).
            number: Number of the batch.
        """
        assert isinstance(x, Tensor), "images are one tensor"
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * number)
        count, _, high, wide = x.shape
        down, right = (self._shifts(count, size, generator) for size in (high, wide))
        flipped = torch.rand(count, 1, generator=generator) < 0.5 if self._flips else None
        return changed_images(x, down, right, flipped)

    def _shifts(self, count: int, size: int, generator: torch.Generator) -> Tensor:  # (B, 1)
        most = max(1, size // _SHARE)
        return torch.randint(-most, most + 1, (count, 1), generator=generator)


def changed_images(
    x: Tensor,  # (B, C, H, W)
    down: Tensor,  # (B, 1)
    right: Tensor,  # (B, 1)
    flipped: Tensor | None = None,  # (B, 1), bool
) -> Tensor:  # (B, C, H, W)
    """Return images that were flipped from left to right, then shifted, in their memory format.

    Args:
        x: Images.
        down: Pixels by which the seen part lies further down, negative for up.
        right: Pixels by which it lies further right.
        flipped: Mask of the images that are flipped; None flips none.
    """
    count, _, high, wide = x.shape
    columns = torch.arange(wide).expand(count, wide)
    if flipped is not None:
        columns = torch.where(flipped, wide - 1 - columns, columns)
    rows, columns = torch.arange(high) + down, columns + right
    inside = _within(rows, high)[:, :, None] & _within(columns, wide)[:, None, :]
    at = (torch.arange(count)[:, None, None], rows.clamp(0, high - 1)[:, :, None],
          columns.clamp(0, wide - 1)[:, None, :])  # fmt: skip
    picked = x.permute(0, 2, 3, 1)[tuple(index.to(x.device) for index in at)]
    found = torch.where(inside[..., None].to(x.device), picked, 0).permute(0, 3, 1, 2)
    last = x.is_contiguous(memory_format=torch.channels_last)
    return found if last else found.contiguous()


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)
