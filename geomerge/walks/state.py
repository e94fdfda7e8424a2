"""What a walk needs to go on where it was: plain values and tensors, in one file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from geomerge.errors import RunError
from geomerge.io.checkpoint import read_safetensors
from geomerge.io.files import parse_json, write_bytes

__all__ = ["StateFile", "WalkState"]

_VALUES = "geomerge.walk"
_LEAST = 1.0  # seconds between two writings, and this many times what the last one took:
_SHARE = 20.0


@dataclass
class WalkState:
    """Where a walk is; whoever takes part in it keeps here all that the next step depends on.

    Attributes:
        values: As JSON keeps them.
        tensors: Changed in place, if at all, only between two points of the walk.
        parts: Of those who take part, and of walks one after the other, by name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, WalkState] = field(default_factory=dict)

    def part(self, name: str) -> WalkState:
        """Return the state of a part, a new one the first time."""
        return self.parts.setdefault(name, WalkState())

    def _nested(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "parts": {name: part._nested() for name, part in self.parts.items()},
        }

    def _flat(self, prefix: str = "") -> dict[str, Tensor]:
        found = {prefix + name: tensor for name, tensor in self.tensors.items()}
        for name, part in self.parts.items():
            found |= part._flat(f"{prefix}{name}/")
        return found


class StateFile:
    """A walk's state on disk, written now and then.

    Args:
        file: Where; None keeps nothing.
        device: Where tensors go that were not on the CPU.

    Raises:
        RunError: If the file cannot be read.
    """

    def __init__(self, file: Path | None = None, device: str | torch.device = "cpu") -> None:
        self._file = file
        self.state = WalkState() if file is None or not file.exists() else _read(file, device)
        self._due = time.monotonic() + _LEAST

    @property
    def steps(self) -> int:
        """How many steps of the leg are on disk."""
        return len(self.state.part("leg").values.get("steps", ()))

    @property
    def due(self) -> bool:
        """Whether it is time to write: seldom enough for writing to take a twentieth at most."""
        return self._file is not None and time.monotonic() >= self._due

    def write(self) -> None:
        """Write the state in one step; with no file do nothing.

        Raises:
            RunError: If the file cannot be written.
        """
        if self._file is None:
            return
        began = time.monotonic()
        tensors, seen, here = {}, set(), []
        for name, tensor in self.state._flat().items():
            found = tensor.detach().cpu()
            # Tensors that share memory are refused by the format; only those are copied.
            place = found.untyped_storage().data_ptr()
            tensors[name] = found.clone() if place in seen else found.contiguous()
            seen.add(place)
            if tensor.device.type == "cpu":
                here.append(name)
        # The header of the format has a limit, and the steps of a long walk go beyond it.
        values = json.dumps({**self.state._nested(), "here": here}).encode()
        tensors[_VALUES] = torch.frombuffer(bytearray(values), dtype=torch.uint8)
        write_bytes(self._file, safetensors.torch.save(tensors))
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
            f"{file} holds no state of a walk ({error}); remove {file.parent} and walk again"
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
