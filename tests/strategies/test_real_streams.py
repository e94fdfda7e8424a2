"""Accuracies on real data, far above what forgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geomerge.strategies import StreamOptions, stream
from geomerge.strategies.result import StreamRow

pytestmark = pytest.mark.slow


def table(root: Path, name: str, scenario: str | None = None, **more: Any) -> dict[str, StreamRow]:
    options = StreamOptions(name, scenario, data_root=str(root), **more)
    return {row.name: row for row in stream(options=options).rows}


def test_permuted_mnist(real_data: Path) -> None:
    rows = table(
        real_data, "permuted-mnist", experiences=3, epochs=2,
        only=("geodesic", "naive", "running-mean"),
    )  # fmt: skip
    assert rows["geodesic"].accuracy > 0.955
    assert rows["geodesic"].accuracy > rows["running-mean"].accuracy + 0.02
    assert rows["geodesic"].backward_transfer > -0.02
    assert rows["naive"].backward_transfer < -0.03


def test_split_mnist_class_by_class(real_data: Path) -> None:
    rows = table(real_data, "split-mnist", epochs=3, only=("geodesic", "naive", "mean"))
    assert rows["geodesic"].accuracy > 0.88
    assert rows["geodesic"].kept["examples"] == 0
    assert rows["naive"].accuracy < 0.3
    assert rows["mean"].accuracy < 0.7


def test_split_mnist_with_heads(real_data: Path) -> None:
    rows = table(real_data, "split-mnist", "task", epochs=2, only=("geodesic",))
    assert rows["geodesic"].accuracy > 0.98
