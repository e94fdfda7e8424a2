"""Examples from datasets and data loaders, collected into tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from geomerge.data.arrays import LABELS
from geomerge.errors import TaskError, first_line, type_of
from geomerge.networks.batches import Batch, as_batch, concat, leaves, shape_of

__all__ = ["Examples", "class_names_of", "collect", "collect_inputs", "examples_of", "in_batches"]

Examples: TypeAlias = tuple[Batch, Tensor]  # inputs (N, ...), labels (N,)

# Labels of batches that may be without: other names of labels may be arguments of a network.
_OPTIONAL = tuple(name for name in LABELS if name.startswith("label"))
_NESTED = 8  # subsets of subsets
_COLLATED = 256  # examples of a dataset at a time


def examples_of(x: Any, y: Any, source: str) -> Examples:
    """Return inputs and labels given as tensors or arrays.

    Args:
        x: Inputs: one tensor, a sequence or a mapping of tensors.
        y: Labels.
        source: Name of the data, for messages.

    Raises:
        TaskError: If something is no tensor.
    """
    inputs, labels = as_batch(x), as_batch(y)
    if inputs is None or not isinstance(labels, Tensor):
        wrong = x if inputs is None else y
        raise TaskError(
            f"{source} holds {_described(wrong)}, expected tensors: inputs as one tensor, a tuple "
            "or a mapping of tensors, labels as one tensor; convert them"
        )
    return inputs, labels


def class_names_of(dataset: Any) -> tuple[str, ...]:
    """Return the names of a dataset's classes, as torchvision's datasets have them; else none."""
    for _ in range(_NESTED):
        names = getattr(dataset, "classes", None)
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return tuple(names)
        dataset = getattr(dataset, "dataset", None)  # of a subset
    return ()


def collect(batches: Iterable[Any], source: str, label: str | None = None) -> Examples:
    """Read labelled batches and return them as one.

    Args:
        batches: Batches ``(x, y)``, ``(x_1, ..., x_k, y)``, or mappings with labels.
        source: Name of the data, for messages.
        label: Entry of a mapping that holds the labels; None finds it by its usual names.

    Raises:
        TaskError: If a batch holds no labels or anything that is no tensor, if batches differ in
            form, or if there are none.
    """
    inputs: list[Batch] = []
    labels: list[Tensor] = []
    for batch in _read(batches, source):
        x, y = _parted(batch, label)
        if y is None:
            raise TaskError(
                f"{source} has a batch without labels, {_described(batch)}, expected (x, y) or a "
                f"mapping with {label or 'labels'}; give the labels"
            )
        checked, numbers = examples_of(x, y, source)
        inputs.append(checked)
        labels.append(numbers)
    return _joined(inputs, source), torch.cat(labels)


def collect_inputs(batches: Iterable[Any], source: str, label: str | None = None) -> Batch:
    """Read batches and return their inputs as one batch; labels are left out.

    Args:
        batches: Batches as in :func:`collect`, or of inputs alone, as one tensor or a mapping.
        source: Name of the data, for messages.
        label: Entry of a mapping that holds the labels; None takes ``"labels"`` or ``"label"``.

    Raises:
        TaskError: If a batch holds anything that is no tensor, or there are none.
    """
    inputs: list[Batch] = []
    for batch in _read(batches, source):
        x, _ = _parted(batch, label, _OPTIONAL)
        checked = as_batch(x)
        if checked is None:
            raise TaskError(f"{source} holds {_described(x)}, expected tensors; convert them")
        inputs.append(checked)
    return _joined(inputs, source)


def in_batches(dataset: Any) -> Iterator[Any]:
    """Yield the examples of a dataset in batches.

    Args:
        dataset: A dataset with a length, or an iterable of examples.

    Raises:
        TaskError: If examples cannot be put into one batch.
    """
    sized = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    examples = (dataset[i] for i in range(len(dataset))) if sized else iter(dataset)
    part: list[Any] = []
    for example in examples:
        part.append(_without_images(example))
        if len(part) == _COLLATED:
            yield _collated(part)
            part = []
    if part:
        yield _collated(part)


def _collated(examples: list[Any]) -> Any:
    try:
        return default_collate(examples)
    except Exception as error:  # torch raises many types
        raise TaskError(
            f"the examples of a dataset cannot be put into one batch ({first_line(error)}); have "
            "it return tensors of equal shape"
        ) from error


def _without_images(example: Any) -> Any:
    """Return an example with images of PIL as bytes, shape (channels, height, width)."""
    if isinstance(example, Mapping):
        return {name: _without_images(value) for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(_without_images(value) for value in example)
    if not hasattr(example, "getbands"):
        return example
    import numpy as np

    pixels = torch.from_numpy(np.array(example))
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def _read(batches: Iterable[Any], source: str) -> Iterator[Any]:
    """Yield batches; a dataset given in their place gives examples, which are put into batches."""
    empty = True
    for batch in in_batches(batches) if isinstance(batches, Dataset) else batches:
        empty = False
        yield batch
    if empty:
        raise TaskError(
            f"{source} has no batches, expected at least one; give data that can be iterated over "
            "again"
        )


def _parted(batch: Any, label: str | None, usual: Sequence[str] = LABELS) -> tuple[Any, Any]:
    """Return the inputs and the labels of a batch; None where it has no labels."""
    if isinstance(batch, Mapping):
        names = (label,) if label is not None else usual
        found = next((name for name in names if name in batch), None)
        if found is None:
            return batch, None
        return {name: v for name, v in batch.items() if name != found}, batch[found]
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        *inputs, labels = batch
        return inputs[0] if len(inputs) == 1 else tuple(inputs), labels
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        return batch[0], None
    return batch, None


def _joined(parts: list[Batch], source: str) -> Batch:
    for part in parts:
        if type(part) is not type(parts[0]) or shape_of(part) != shape_of(parts[0]):
            raise TaskError(
                f"{source} has batches whose inputs are of shape {shape_of(parts[0])} and "
                f"{shape_of(part)}, expected one shape; pad or crop all to one size"
            )
    first = {len(leaf) for leaf in leaves(parts[0])}
    if len(first) > 1:
        raise TaskError(
            f"{source} has inputs of {sorted(first)} examples in one batch, expected as many of "
            "each; put examples along the first dimension"
        )
    return concat(parts)


def _described(value: Any) -> str:
    """Return a description of a value, for messages."""
    if isinstance(value, Mapping):
        return "a mapping of " + ", ".join(f"{k}: {type(v).__name__}" for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return f"{type_of(value)} of " + ", ".join(type(v).__name__ for v in value)
    return type_of(value)
