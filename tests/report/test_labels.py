"""Names in pictures and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from geomerge.report.labels import short_task


@pytest.mark.parametrize("name", ["mnist", "mnist@0-4", "my task", "nouns.csv"])
def test_a_task_has_its_name_and_a_file_its_last_part(name: str, tmp_path: Path) -> None:
    assert short_task(name) == name
    assert short_task(str(tmp_path / name)) == name
