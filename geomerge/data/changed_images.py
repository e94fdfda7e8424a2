"""Random shifts and flips of images, for walks on few of them.

Targets are the outputs of a teacher on the changed images, so that what an image shows may change
too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomerge.networks.batches import Batch

__all__ = ["AUGMENT", "ChangedImages"]

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
        columns = torch.arange(wide).expand(count, wide)
        if self._flips:
            flipped = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(flipped, wide - 1 - columns, columns)
        rows, columns = torch.arange(high) + down, columns + right
        inside = _within(rows, high)[:, :, None] & _within(columns, wide)[:, None, :]
        at = rows.clamp(0, high - 1) * wide
        places = (at[:, :, None] + columns.clamp(0, wide - 1)[:, None, :]).view(count, 1, -1)
        picked = x.flatten(2).gather(2, places.expand(-1, x.shape[1], -1).to(x.device))
        return picked.view_as(x) * inside[:, None].to(x)

    def _shifts(self, count: int, size: int, generator: torch.Generator) -> Tensor:  # (B, 1)
        most = max(1, size // _SHARE)
        return torch.randint(-most, most + 1, (count, 1), generator=generator)


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)
