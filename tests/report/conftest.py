"""Pictures that are drawn twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PNG = b"\x89PNG\r\n\x1a\n"
Draw = Callable[[Any, Path], None]


@pytest.fixture
def drawn() -> Callable[[Draw, Any, Path], bytes]:
    """Return a function that draws twice and returns the bytes, the same both times."""

    def drawn(draw: Draw, what: Any, folder: Path) -> bytes:
        one, other = folder / "one.png", folder / "other.png"
        draw(what, one)
        draw(what, other)
        content = one.read_bytes()
        assert content.startswith(PNG)
        assert content == other.read_bytes()
        return content

    return drawn
