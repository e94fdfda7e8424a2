"""Arrays and tables of examples: columns of inputs and labels, and the numbers of classes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomerge.errors import NoLabelsError, TaskError, TaskWarning

__all__ = [
    "ARRAYS",
    "LABELS",
    "Examples",
    "class_numbers",
    "examples_in",
    "inputs_of",
    "table_arrays",
]

Array = np.ndarray[Any, Any]
Pair = tuple[Tensor, Tensor]  # inputs (N, ...), labels (N,)
Examples = tuple[Pair, Pair | None, Pair | None, list[str]]  # train, test, select, class names

INPUTS = ("x", "X", "data", "inputs", "images", "features", "image", "input", "input_ids")
LABELS = ("y", "Y", "labels", "label", "targets", "target", "classes", "class", "category")
_HELD = (("test",), ("val", "valid", "validation"))
_SPLITS = ("train", *_HELD[0], *_HELD[1])
ARRAYS = frozenset(  # names of arrays that are read
    name
    for kind in (*INPUTS, *LABELS)
    for name in (kind, *(f"{kind}_{s}" for s in _SPLITS), *(f"{s}_{kind}" for s in _SPLITS))
)
_LARGEST_CLASS = 2**20
_CHANNELS = (1, 3, 4)
_NAMELESS = ("", "Unnamed: 0")  # as pandas writes and reads an index


def examples_in(arrays: Mapping[str, Any], source: str) -> Examples:
    """Return the splits that arrays hold by their names.

    Args:
        arrays: Arrays by names such as ``x`` and ``y``, ``x_train``, ``train_labels``.
        source: Name of their source, for messages.

    Returns:
        Training examples, test and selection examples where there are some, and the names of the
        classes where labels are strings.

    Raises:
        NoLabelsError: If there are inputs and no labels.
        TaskError: If there are no inputs, or arrays are of no use.
    """
    parts: list[tuple[Array, Array] | None] = []
    for splits in (("", "train"), *_HELD):
        x, y = _named(arrays, INPUTS, splits), _named(arrays, LABELS, splits)
        if x is None or y is None:
            if not parts and x is not None:
                raise NoLabelsError(
                    f"{source} has no labels, expected some where an accuracy is measured or a "
                    "choice is made; add an array y",
                    inputs_of(x, source),
                )
            if not parts:
                raise TaskError(
                    f"{source} holds {sorted(arrays)}, expected arrays x and y (or x_train and "
                    "y_train, and x_test and y_test); rename them"
                )
            parts.append(None)
        else:
            parts.append((np.asarray(x), np.asarray(y)))
    train, test, select = parts
    assert train is not None
    if test is None:
        test, select = select, None
    given = [part for part in (train, test, select) if part is not None]
    numbers, names = class_numbers([y for _, y in given], source)
    pairs = [(inputs_of(x, source), y) for (x, _), y in zip(given, numbers, strict=True)]
    return pairs[0], (*pairs[1:], None)[0], (*pairs[2:], None)[0], names


def inputs_of(array: Any, source: str) -> Tensor:
    """Return inputs as a tensor: floats of 32 bits, bytes, or whole numbers of 64 bits.

    Images get their channels first; those of bytes without channels get one.

    Args:
        array: Inputs, shape (N, ...).
        source: Name of their source, for messages.

    Raises:
        TaskError: If they are no numbers, or not one row or image for each example.

    Warns:
        TaskWarning: If channels came last.
    """
    found = np.asarray(array)
    if found.dtype.kind not in "buif":
        raise TaskError(
            f"{source} holds inputs of type {found.dtype}, expected numbers; convert them"
        )
    if 0 in found.shape or found.ndim < 2:
        raise TaskError(
            f"{source} holds inputs of shape {found.shape}, expected one row of numbers or one "
            "image for each label; correct them"
        )
    if found.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows is refused as not finite
            x = torch.from_numpy(np.ascontiguousarray(found.astype(np.float32)))
    else:
        kind = np.uint8 if found.dtype == np.uint8 else np.int64
        x = torch.from_numpy(np.ascontiguousarray(found.astype(kind)))
    if x.dim() == 3 and x.dtype == torch.uint8:
        return x.unsqueeze(1)
    if x.dim() == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS:
        warnings.warn(
            f"{source} has images of shape {tuple(x.shape[1:])}: channels were taken to come last",
            TaskWarning, stacklevel=2,
        )  # fmt: skip
        return x.permute(0, 3, 1, 2).contiguous()
    return x


def class_numbers(parts: Sequence[Array], source: str) -> tuple[list[Tensor], list[str]]:
    """Return labels of splits as class numbers, shape (N,) each, and names of the classes.

    Labels are whole numbers (of any type), one column of them, rows with one 1 (one-hot), or
    strings, which are numbered in their order.

    Args:
        parts: Labels of each split.
        source: Name of their source, for messages.

    Raises:
        TaskError: If they are anything else.

    Warns:
        TaskWarning: If strings were numbered.
    """
    flat = [_column(part) for part in parts]
    if all(part.dtype.kind in "US" for part in flat):
        names = sorted({str(label) for part in flat for label in part.tolist()})
        shown = ", ".join(f"{name!r} = {k}" for k, name in enumerate(names[:6]))
        more = ", ..." if len(names) > 6 else ""
        warnings.warn(
            f"the labels of {source} are names, numbered in their order: {shown}{more}",
            TaskWarning, stacklevel=3,
        )  # fmt: skip
        place = {name: k for k, name in enumerate(names)}
        return [torch.tensor([place[str(v)] for v in part.tolist()]) for part in flat], names
    for part in flat:
        whole = part.dtype.kind in "bui" or (
            part.dtype.kind == "f" and np.isfinite(part).all() and (part == np.floor(part)).all()
        )
        if part.ndim != 1 or not whole or not part.size:
            raise TaskError(
                f"{source} holds labels of type {part.dtype} and shape {part.shape}, expected one "
                "class for each input, as whole numbers, names or one-hot rows; convert them"
            )
        if float(part.max()) >= _LARGEST_CLASS:
            raise TaskError(
                f"{source} has a class numbered {part.max()}, expected class numbers from 0 on and "
                f"under {_LARGEST_CLASS}; renumber them"
            )
    return [torch.from_numpy(part.astype(np.int64)) for part in flat], []


def table_arrays(
    rows: Sequence[Mapping[str, Any]], label: str | None, source: str
) -> dict[str, Any]:
    """Return a table of numbers as arrays ``x`` and ``y``; ``x`` alone where no column is a label.

    Args:
        rows: Values by the names of their columns.
        label: Column of the labels; None finds it by its name.
        source: Name of its source, for messages.

    Raises:
        TaskError: If another column than that of the labels holds no numbers.
    """
    names = [name for name in rows[0] if not _is_index(name, rows, source)]
    labels = [label] if label in names else [n for n in names if n.lower() in LABELS]
    columns = [n for n in names if n not in labels[-1:]]
    try:
        x = np.array([[float(row[n]) for n in columns] for row in rows])
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"{source} has columns that hold no numbers ({str(error)[:80]}), expected numbers in "
            "all but the labels; remove or encode them"
        ) from error
    if not labels:
        return {"x": x}
    y = [row[labels[-1]] for row in rows]
    try:
        return {"x": x, "y": np.array([float(value) for value in y])}
    except (TypeError, ValueError):
        return {"x": x, "y": np.array([str(value) for value in y])}


def _is_index(name: str, rows: Sequence[Mapping[str, Any]], source: str) -> bool:
    """Return whether a column without a name numbers the rows, as pandas writes its index."""
    if name not in _NAMELESS:
        return False
    values = [str(row[name]) for row in rows]
    if not all(value.isdecimal() for value in values) or len(set(values)) < len(values):
        return False
    warnings.warn(
        f"the first column of {source} has no name and another whole number in each row: it was "
        "taken for the index of the rows and left out; give it a name if it is an input",
        TaskWarning, stacklevel=4,
    )  # fmt: skip
    return True


def _named(arrays: Mapping[str, Any], kinds: Sequence[str], splits: Sequence[str]) -> Any:
    """Return the array whose name has a kind and a split in it; None if there is none."""
    for split in splits:
        for kind in kinds:
            for name in (kind,) if not split else (f"{kind}_{split}", f"{split}_{kind}"):
                if name in arrays:
                    return arrays[name]
    return None


def _column(labels: Array) -> Array:
    """Return labels without a dimension of one, and one-hot rows as numbers."""
    if labels.ndim != 2:
        return labels
    if labels.shape[1] == 1:
        return np.asarray(labels[:, 0])
    numbers = labels.dtype.kind in "buif" and np.isin(labels, (0, 1)).all()
    one_hot = numbers and (labels.sum(axis=1) == 1).all()
    return np.asarray(labels.argmax(axis=1)) if one_hot else labels
