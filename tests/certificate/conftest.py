"""A small finished merge, which tests copy before they damage it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from merges import run_of

OPTIONS = {
    "manifold": ("digits",),
    "damping": 1e-5,
    "steps": 20,
    "points": 8,
    "budget": ("b=1e-5", "a/*=1e-3"),
}


@pytest.fixture(scope="session")
def options() -> dict[str, Any]:
    """The options of the merge."""
    return OPTIONS


@pytest.fixture(scope="session")
def finished(digits: Path, made_once: Callable[..., Path]) -> Path:
    """Its folder; the input files are those of ``digits``."""

    def merge(folder: Path) -> None:
        run_of([digits / "a.pt", digits / "b.pt"], OPTIONS, out=folder / "merge")

    return made_once("certified", merge) / "merge"
