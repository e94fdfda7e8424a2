"""Line styles of all matplotlib pictures, and their files as PNG and SVG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from geomerge.io.files import write_bytes

__all__ = ["STYLES", "write_picture"]

STYLES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
)
_DPI = 150


def write_picture(figure: Any, file: Path) -> None:
    """Write a figure as PNG and as SVG; the same figure gives the same bytes.

    Args:
        figure: Figure of matplotlib.
        file: File whose name ends in ``.png``.
    """
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.hashsalt": "geomerge",  # fixed names of clip paths
        "svg.fonttype": "none",  # text as text rather than outlines
        "figure.autolayout": False,
        "figure.constrained_layout.use": False,
    }
    with matplotlib.rc_context(settings):
        figure.set_dpi(_DPI)
        layout = figure.get_layout_engine()
        if layout is not None:  # once, rather than for each file with a drawing of its own
            layout.execute(figure)
            figure.set_layout_engine(None)
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=suffix[1:], dpi=_DPI, metadata=metadata)
            write_bytes(file.with_suffix(suffix), picture.getvalue())
