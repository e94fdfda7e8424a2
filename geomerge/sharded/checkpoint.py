"""Checkpoints of sharded weights, by torch's distributed checkpoint in Hugging Face's format.

Each process writes its own rows into a file of its own; any number of processes reads them again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from geomerge.errors import RunError, first_line
from geomerge.io.files import parse_json, write_bytes
from geomerge.processes import Team

__all__ = ["Saved", "load_shards", "save_model", "save_shards"]

_STATE = "state"  # by whose name an unfinished folder is known to hold a walk
_PARTS = "sharded"  # folder in which torch puts the parts of whole tensors
_UNREAD = "metadata read failed: "  # in torch's texts, before what the operating system said
_LARGEST = 5 * 10**9  # bytes of a file of weights, as transformers writes them


def save_shards(folder: Path, tensors: Mapping[str, Any], mates: Team) -> None:
    """Write distributed tensors, whole or not at all.

    Args:
        folder: Folder to make; what an interrupted call left of it is replaced.
        tensors: Distributed tensors by name.
        mates: Processes that hold them; all must call this at once.

    Raises:
        RunError: If a process cannot write, in every process.
    """
    begun = folder.with_name(f".{folder.name}")
    if mates.rank == 0:
        for left in (begun, folder):
            shutil.rmtree(left, ignore_errors=True)
    mates.wait()
    try:
        _save(begun, tensors, mates, consolidated=False)
    except RunError:
        if mates.rank == 0:  # a full disk has room for something else then
            shutil.rmtree(begun, ignore_errors=True)
        raise
    if mates.rank == 0:
        os.replace(begun, folder)
    mates.wait()


def load_shards(folder: Path, tensors: Mapping[str, Any], mates: Team) -> None:
    """Read distributed tensors, into shards of any number of processes.

    Args:
        folder: Folder of :func:`save_shards`.
        tensors: Distributed tensors by name, which are overwritten.
        mates: Processes that hold them; all must call this at once.

    Raises:
        RunError: If a file is missing or damaged, in every process.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        load(dict(tensors), storage_reader=reader, process_group=mates.group)
    except CheckpointException as error:
        raise RunError(
            f"{folder} is no whole checkpoint ({_reason(error)}); remove {folder.parent.parent} "
            "and merge again"
        ) from error


def save_model(folder: Path, tensors: Mapping[str, Any], mates: Team) -> None:
    """Write the weights of a model folder of Hugging Face: files of whole tensors and their index.

    Args:
        folder: The model's folder, which is made if necessary.
        tensors: Distributed tensors by name.
        mates: Processes that hold them; all must call this at once.

    Raises:
        RunError: If a process cannot write, in every process.
    """
    sizes = {k: math.prod(t.shape) * t.element_size() for k, t in tensors.items()}
    files, room = dict.fromkeys(sizes, 1), _LARGEST
    number = 1
    for name, size in sizes.items():
        if size > room and room < _LARGEST:
            number, room = number + 1, _LARGEST
        files[name] = number
        room -= size
    if mates.rank == 0:  # what an interrupted call, perhaps of more processes, left
        shutil.rmtree(folder / _PARTS, ignore_errors=True)
        for file in folder.glob("model-*.safetensors"):
            file.unlink()
    mates.wait()
    _save(folder, tensors, mates, consolidated=True, files=files)
    if mates.rank == 0:
        shutil.rmtree(folder / _PARTS)
    mates.wait()


def _save(
    folder: Path,
    tensors: Mapping[str, Any],
    mates: Team,
    consolidated: bool,
    files: dict[str, int] | None = None,
) -> None:
    writer = HuggingFaceStorageWriter(
        str(folder), files, save_distributed=True, enable_consolidation=consolidated
    )
    try:
        with torch.no_grad():
            save(dict(tensors), storage_writer=writer, process_group=mates.group)
    except CheckpointException as error:
        raise RunError(
            f"cannot write {folder} ({_reason(error)}); make room or choose another folder, and "
            "run the command again"
        ) from error


def _reason(error: CheckpointException) -> str:
    first = next(iter(error.failures.values()), None)
    if first is None:
        return "no reason given"
    return first_line(first[0]).rpartition(_UNREAD)[2]


class Saved:
    """Checkpoint of a walk: a file of values that names folders of shards, all of them complete.

    Args:
        folder: Folder of the file and of the folders.
        mates: Processes that walk.

    Attributes:
        place: Folder of the file and of the folders.
        values: Values that JSON can represent; empty before the first checkpoint.
        pending: Names of complete folders that the next checkpoint names, by their parts.
    """

    def __init__(self, folder: Path, mates: Team) -> None:
        self.place, self._mates = folder, mates
        text = ""
        if mates.rank == 0 and (folder / _STATE).exists():
            text = (folder / _STATE).read_text(encoding="utf-8", errors="replace")
        try:
            found = parse_json(mates.tell(text) or "{}")
            if not isinstance(found, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise RunError(
                f"{folder / _STATE} is no JSON object; remove {folder.parent} and merge again"
            ) from error
        self.values: dict[str, Any] = found
        self.pending: dict[str, str] = dict(self.values.get("folders", {}))
        self._remove_others()

    def folder(self, part: str) -> Path:
        """Return the folder of a part, as the values name it."""
        return self.place / str(self.values["folders"][part])

    def write(self, values: dict[str, Any]) -> None:
        """Replace the checkpoint in one step, and remove folders that it no longer names.

        Args:
            values: Values that JSON can represent; the names of the folders are added.
        """
        self.values = {**values, "folders": dict(self.pending)}
        if self._mates.rank == 0:
            write_bytes(self.place / _STATE, json.dumps(self.values, indent=1).encode())
        self._remove_others()
        self._mates.wait()

    def _remove_others(self) -> None:
        """Remove folders that the checkpoint does not name, as an interrupted call left them."""
        for other in self.place.glob("*-[0-9]*") if self._mates.rank == 0 else ():
            if other.name not in self.pending.values():
                shutil.rmtree(other, ignore_errors=True)
