"""Tables in Parquet, which the package pyarrow reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import geomerge as gm
from geomerge.data.text import TextEncoder, load_text_task
from geomerge.errors import TaskError

pa = pytest.importorskip("pyarrow", reason="an extra of the package: geomerge[parquet]")


def write(file: Path, **columns: list[Any]) -> Path:
    pa.parquet.write_table(pa.table(columns), file)
    return file


@pytest.fixture(autouse=True)
def _parquet() -> None:
    pytest.importorskip("pyarrow.parquet")


def test_numbers_and_labels(tmp_path: Path) -> None:
    x = [float(k) for k in range(30)]
    names = ["even", "odd"] * 15
    task = gm.load_task(str(write(tmp_path / "a.parquet", one=x, two=x, label=names)))
    assert task.input_shape == (2,)
    assert task.class_names == ("even", "odd")
    assert task.classes == 2


def test_texts_of_a_network(tmp_path: Path) -> None:
    def tokens(texts: list[str], **_: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[len(text)] for text in texts])}

    file = write(tmp_path / "a.parquet", text=["a b"] * 20 + ["c"] * 20, label=[0] * 20 + [1] * 20)
    task = load_text_task(file, TextEncoder(tokens))
    assert task.classes == 2
    assert {int(v) for v in task.train.inputs.batch(slice(None))["input_ids"]} == {1, 3}


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TaskError, match="is no readable table"):
        gm.load_task(str(tmp_path / "a.parquet"))
