"""State of a walk for resuming: plain values and tensors in one file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.errors import RunError
from geomerge.io.checkpoint import read_safetensors
from geomerge.io.files import parse_json, write_tensors
from geomerge.processes import wait, writes

__all__ = ["StateFile", "WalkState"]

_VALUES = "geomerge.walk"
_LEAST = 1.0  # least seconds between two writes
_SHARE = 20.0  # least time between two writes, as a multiple of the last write's duration


@dataclass
class WalkState:
    """State of a walk: everything that the next step depends on.

    Attributes:
        values: Values that JSON can represent.
        tensors: Tensors by name; they change in place only between two points of the walk.
        parts: States of the walk's parts (damping learner, constraints, consecutive walks), by
            name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, WalkState] = field(default_factory=dict)

    def part(self, name: str) -> WalkState:
        """Return the state of a part; the first call creates it."""
        return self.parts.setdefault(name, WalkState())

    def _nested(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "parts": {name: part._nested() for name, part in self.parts.items()},
        }

    def _flat(self, prefix: str = "") -> dict[str, Tensor]:
        flat = {prefix + name: tensor for name, tensor in self.tensors.items()}
        for name, part in self.parts.items():
            flat |= part._flat(f"{prefix}{name}/")
        return flat


class StateFile:
    """State of a walk on disk, written at intervals.

    Args:
        file: File of the state; None stores nothing.
        device: Device for tensors that were not on the CPU when stored.

    Attributes:
        state: State of the walk, read from the file if it exists.
        before_write: Function called before each write, which writes the files that the state
            refers to.

    Raises:
        RunError: If the file cannot be read.
    """

    def __init__(self, file: Path | None = None, device: str | torch.device = "cpu") -> None:
        self._file = file
        self.before_write: Callable[[], None] | None = None
        if file is not None:
            wait()
        self.state = WalkState() if file is None or not file.exists() else _read(file, device)
        if file is not None:
            wait()  # until every process has read the same state
        self._due = time.monotonic() + _LEAST

    @property
    def steps(self) -> int:
        """Number of steps of the leg that are on disk."""
        return len(self.state.part("leg").values.get("steps", ()))

    @property
    def due(self) -> bool:
        """Whether to write now; writing takes at most a twentieth of the time."""
        return self._file is not None and time.monotonic() >= self._due

    def replace(self, state: WalkState) -> None:
        """Write another state in the place of this one.

        Raises:
            RunError: If the file cannot be written.
        """
        self.state, self.before_write = state, None
        self.write()

    def write(self) -> None:
        """Write the state atomically, if there is a file.

        Raises:
            RunError: If the file cannot be written.
        """
        if self._file is None or not writes():
            return
        began = time.monotonic()
        if self.before_write is not None:
            self.before_write()
        tensors, here = {}, []
        for name, tensor in self.state._flat().items():
            tensors[name] = tensor.detach().cpu()
            if tensor.device.type == "cpu":
                here.append(name)
        # Values are stored as a tensor: those of a long walk exceed the size limit of the header.
        values = json.dumps({**self.state._nested(), "here": here}).encode()
        tensors[_VALUES] = torch.frombuffer(bytearray(values), dtype=torch.uint8)
        write_tensors(self._file, tensors)
        now = time.monotonic()
        self._due = now + max(_LEAST, _SHARE * (now - began))


def _read(file: Path, device: str | torch.device) -> WalkState:
    try:
        tensors, _ = read_safetensors(file.read_bytes(), file)
        nested = parse_json(tensors.pop(_VALUES).numpy().tobytes())
        here = set(nested["here"])
        tensors = {k: v if k in here else v.to(device) for k, v in tensors.items()}
        return _restored(nested, tensors, "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} holds no whole state of a walk; remove {file.parent} and walk again"
        ) from error


def _restored(nested: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> WalkState:
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }
    parts = {
        name: _restored(part, tensors, f"{prefix}{name}/") for name, part in nested["parts"].items()
    }
    return WalkState(nested["values"], own, parts)
