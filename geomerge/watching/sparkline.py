"""Numbers -> a line of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

__all__ = ["sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(
    values: Sequence[float], low: float = 0.0, high: float = 1.0, width: int | None = None
) -> str:
    """Return one block for each number, or for the mean of neighbours where they are too many.

    Args:
        values: The numbers.
        low: What the lowest block stands for.
        high: What the highest stands for; as high as ``low``, every block is the lowest.
        width: Most blocks; None takes as many as there are numbers.
    """
    count = len(values) if width is None else min(width, len(values))
    cuts = [len(values) * k // count for k in range(count + 1)] if count else []
    shares = (
        (fmean(values[start:stop]) - low) / (high - low) if high > low else 0.0
        for start, stop in pairwise(cuts)
    )
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * min(max(share, 0.0), 1.0))] for share in shares)
