from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import TASKS, write_base, write_fine_tune, write_table


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two fine-tunes of it with heads of their own, and a table of texts for each."""
    folder = tmp_path_factory.mktemp("sharded")
    base = write_base(folder / "base")
    for task in TASKS:
        write_fine_tune(folder / task, base, task)
        write_table(folder / f"{task}.csv", task, 45)
    return folder
