"""Files of arrays and tensors as examples: ``.npz``, ``.npy``, ``.pt``, and tables of numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geomerge.data.arrays import ARRAYS, LABELS, table_arrays
from geomerge.data.text import ExampleOptions, read_rows
from geomerge.errors import CheckpointError, TaskError, first_line, type_of
from geomerge.io.files import read_regular
from geomerge.io.formats import format_of, refuse_other_format
from geomerge.io.npz import read_npz
from geomerge.io.pickles import Foreign, StoredArray, StoredTensor
from geomerge.io.torch_files import TorchFile, read_torch

__all__ = ["arrays_of_file", "arrays_of_table"]

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+([eE][+-]?\d+)?\s*")
_SAVE = "save it with numpy.savez(x=..., y=...)"


def arrays_of_file(file: Path) -> Mapping[str, Any]:
    """Return the arrays of a file by name; those of a tuple are ``x`` and ``y``.

    Args:
        file: File of ``numpy.savez``, ``numpy.save`` or ``torch.save``, whatever its suffix.

    Raises:
        TaskError: If it is none, or damaged.
    """
    try:
        content = read_regular(file)
    except OSError as error:
        raise TaskError(
            f"cannot read {file} ({error.strerror or error}); check the path"
        ) from error
    form = format_of(content)
    try:
        if form == "npz" or file.suffix.lower() == ".npz":
            found, there = read_npz(content, ARRAYS)
            return {**dict.fromkeys(there), **found}
        if content[:6] == b"\x93NUMPY":
            return {"x": np.load(io.BytesIO(content), allow_pickle=False)}
        if form in ("torch", "pickle"):
            return _arrays_of_torch(read_torch(content))
        refuse_other_format(content, file)
    except CheckpointError as error:
        said = str(error).partition(", expected")[0]
        raise TaskError(f"{said}, expected a file of examples; {_SAVE}") from error
    except Exception as error:  # zipfile, numpy and torch raise many types
        if form == "npz" or file.suffix.lower() == ".npz":
            raise TaskError(
                f"{file} is not a readable .npz of plain arrays ({first_line(error)}); write it "
                "with numpy.savez(x=..., y=...)"
            ) from error
        raise TaskError(
            f"{file} holds no examples that can be read ({first_line(error)}); {_SAVE}"
        ) from error
    raise TaskError(
        f"{file} is a {file.suffix} file, which is not read as a task, expected .npz, .npy, .pt, a "
        f"table or a folder of images; {_SAVE}"
    )


def arrays_of_table(file: Path, columns: ExampleOptions) -> Mapping[str, Any]:
    """Return the arrays ``x`` and ``y`` of a table of numbers with a line of column names.

    Args:
        file: A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file.
        columns: Name of the column of labels.

    Raises:
        TaskError: If it is damaged, or holds texts.
    """
    rows = read_rows(file)
    if not any(map(_is_text, rows[0])):
        raise TaskError(
            f"the first line of {file} holds numbers, expected the names of the columns; add a "
            "line of names, in which the labels' column is called label"
        )
    comma = next((v for v in _beside(rows[0], columns) if _DECIMAL_COMMA.fullmatch(str(v))), None)
    if comma is not None:
        raise TaskError(
            f"{file} has numbers with a decimal comma, such as {comma!r}, expected decimal points; "
            "write them with points"
        )
    if any(len(str(value)) > 0 and _is_text(value) for value in _beside(rows[0], columns)):
        raise TaskError(
            f"{file} is a table of texts, which the tokenizer of a Hugging Face folder makes "
            "numbers of; give the network as such a folder, or columns of numbers"
        )
    return table_arrays(rows, columns.label_column, str(file))


def _beside(row: Mapping[str, Any], columns: ExampleOptions) -> list[Any]:
    """Return the values of a row that cannot be labels."""
    own = columns.label_column
    return [v for name, v in row.items() if name != own and name.lower() not in LABELS]


def _is_text(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return True
    return False


def _arrays_of_torch(file: TorchFile) -> dict[str, Any]:
    found = file.content
    if isinstance(found, Foreign) and isinstance(found.state, dict):  # a TensorDataset
        found = found.state.get("tensors", found.state)
    if isinstance(found, (StoredTensor, StoredArray)):
        found = (found,)
    if type(found) in (tuple, list):
        if not 1 <= len(found) <= 2:
            raise ValueError(f"a sequence of {len(found)}")
        found = dict(zip(("x", "y"), found, strict=False))
    if not isinstance(found, dict):
        raise ValueError(getattr(found, "name", type_of(found)))
    return {
        name: file.tensor(value).numpy()
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, (StoredTensor, StoredArray))
    }
