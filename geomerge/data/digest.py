"""SHA-256 digests of tensors, inputs, labelled splits, files of data and the data of a merge."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.data.classes import split_classes
from geomerge.data.inputs import Inputs
from geomerge.data.sources import NAMED, files_of_folder
from geomerge.data.task import Split, Task
from geomerge.data.text import file_pair, is_text_file
from geomerge.errors import TaskError
from geomerge.io.files import canonical_json, file_sha256, sha256
from geomerge.networks.batches import Batch

__all__ = ["batch_digest", "data_digests", "file_digests", "split_digests", "tensor_digest"]


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and numbers, in hexadecimal.

    Strides, device and the file that it came from change nothing.

    Args:
        tensor: Any dense tensor.
    """
    whole = tensor.detach().cpu().contiguous()
    kind = {"dtype": str(whole.dtype), "shape": list(whole.shape)}
    digest = hashlib.sha256(canonical_json(kind).encode())
    digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def batch_digest(x: Batch) -> str:
    """Return the SHA-256 of a batch: of its tensor, or of the digests of its tensors."""
    if isinstance(x, Tensor):
        return tensor_digest(x)
    named = x.items() if isinstance(x, dict) else enumerate(x)
    return sha256(canonical_json({str(name): tensor_digest(leaf) for name, leaf in named}).encode())


def split_digests(split: Split) -> dict[str, str | int]:
    """Return the number of examples of a split, and digests of its raw inputs and its labels."""
    return {
        "examples": len(split.labels),
        "inputs": batch_digest(split.inputs.raw),
        "labels": tensor_digest(split.labels),
    }


def data_digests(task: Task | None, inputs: Inputs | None) -> dict[str, Any]:
    """Return names, normalisations and digests of a network's data in a merge.

    Args:
        task: Task of the network. The training split has no digest, since its labels are not used.
        inputs: Inputs used by the walk.
    """
    found: dict[str, Any] = {"task": None, "manifold": None}
    if task is not None:
        found["task"] = {
            "name": task.name,
            "normalisation": task.normalisation.to_json(),
            "select": split_digests(task.select),
            "test": split_digests(task.test),
        }
    if inputs is not None:
        found["manifold"] = {
            "name": inputs.name,
            "normalisation": inputs.normalisation.to_json(),
            "examples": len(inputs),
            "inputs": batch_digest(inputs.raw),
        }
    return found


def file_digests(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file that tasks are read from, and of the lists of images.

    Tasks that are named otherwise have none, such as those of known data sets, and neither has what
    cannot be read, which loading reports. Images are many: they count by names and sizes.

    Args:
        names: Names of tasks, as :func:`load_task` takes them.
    """
    found = {}
    for name in names:
        with suppress(TaskError, OSError):
            whole, _ = split_classes(name)
            if whole in NAMED:
                continue
            if os.path.isdir(whole):
                images = files_of_folder(Path(whole))
                sizes = {str(file.relative_to(whole)): file.stat().st_size for file in images}
                found[whole] = sha256(canonical_json(sizes).encode())
            elif os.path.isfile(whole):
                pair = file_pair(Path(whole)) if is_text_file(whole) else (Path(whole), None)
                found |= {str(file): file_sha256(file) for file in pair if file is not None}
    return found
