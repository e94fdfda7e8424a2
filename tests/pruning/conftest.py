from __future__ import annotations

from pathlib import Path

import pytest

from geomerge import Expert


@pytest.fixture(scope="module")
def dense(digits: Path) -> Expert:
    return Expert.load(digits / "a.pt")
