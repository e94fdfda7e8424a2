"""What all pictures share: the styles of their lines, and how they become files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from geomerge.files import write_bytes

__all__ = ["STYLES", "write_picture"]

STYLES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
)


def write_picture(figure: Any, file: Path) -> None:
    """Write a figure as PNG; the same figure gives the same bytes.

    Args:
        figure: A figure of matplotlib.
        file: Where it goes.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, metadata={"Software": None})
    write_bytes(file, picture.getvalue())
