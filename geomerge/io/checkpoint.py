"""A file on disk <-> named weights and what is known about them.

Two formats are read and written: ``.pt``/``.pth`` (``torch.load`` with ``weights_only=True``) and
``.safetensors``. Nothing is ever unpickled. A checkpoint written by geomerge carries a JSON text
(architecture, task, normalisation, training recipe) and may carry the tensors of a sketch.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from geomerge.errors import CheckpointError, RunError, first_line
from geomerge.io.containers import (
    HOW_TO_SAVE,
    check_plain,
    check_safetensors,
    check_torch,
    safetensors_shapes,
)
from geomerge.io.files import (
    canonical_json,
    check_output,
    check_regular,
    parse_json,
    read_regular,
    sha256,
    write_bytes,
)
from geomerge.io.pickles import ForeignObjectError

__all__ = [
    "SUFFIXES",
    "Checkpoint",
    "load_checkpoint",
    "load_header",
    "read_safetensors",
    "save_checkpoint",
    "torch_bytes",
]

SUFFIXES = (".pt", ".pth", ".safetensors")
_META = "geomerge"
_SKETCH = "geomerge.sketch/"
_FLOATS = ("F64", "F32", "F16", "BF16")  # types of the format
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# What later readers rely on. Everything else in the metadata is only carried along.
_KINDS = {
    "architecture": (str, type(None)), "task": (str, type(None)), "normalisation": (dict,),
    "tasks": (dict,), "training": (dict,), "sketch": (dict,), "head": (dict,),
    "config": (dict,),
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Named weights of one network.

    Attributes:
        weights: Parameters and buffers by the names of the network's own state dict.
        meta: What is known: ``architecture``, ``task``, ``normalisation``, ``training``, ...;
            empty for a bare state dict.
        sketch: Tensors of the sketch of this network on its own task; empty without one.
        source: The file it was read from, for messages.
        digest: SHA-256 of the file's bytes, empty if it never was a file.

    Example:
        >>> import geomerge as gm
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        >>> checkpoint = gm.Checkpoint(network.state_dict(), {"task": "digits"})
        >>> list(checkpoint.weights)
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    weights: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    sketch: dict[str, Tensor] = field(default_factory=dict)
    source: str = "network"
    digest: str = ""


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint or a bare state dict without unpickling anything.

    What the file claims is held against its bytes first (:mod:`geomerge.io.containers`), so that a
    file made to do harm costs no more than one that is damaged.

    Args:
        path: A ``.pt``, ``.pth`` or ``.safetensors`` file.

    Returns:
        The weights on the CPU in float32 (integer buffers keep their type).

    Raises:
        CheckpointError: If the file is missing, damaged, claims more than it has, holds objects
            other than plain tensors, or a number that is not finite.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import geomerge as gm
        >>> from torch import nn
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> gm.save_checkpoint(file, gm.Checkpoint(nn.Linear(2, 3).state_dict()))
        >>> found = gm.load_checkpoint(file)
        >>> found.weights["weight"].shape, len(found.digest)  # SHA-256 of the file
        (torch.Size([3, 2]), 64)
    """
    path = Path(path)
    if path.suffix not in (*SUFFIXES, ".bin"):  # the last by transformers, of torch.save too
        raise CheckpointError(
            f"expected a .pt, .pth or .safetensors file, got {path}; rename or convert it"
        )
    content = _read(path)
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(content, path)
        meta = _parse_meta(metadata.get(_META, "{}"), path)
        weights = {k: v for k, v in tensors.items() if not k.startswith(_SKETCH)}
        sketch = {k[len(_SKETCH) :]: v for k, v in tensors.items() if k.startswith(_SKETCH)}
    else:
        weights, meta, sketch = _read_torch(content, path)
    if not weights:
        raise CheckpointError(f"{path} holds no weights; {HOW_TO_SAVE}")
    check_plain(weights, path)
    check_plain(sketch, path)
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    if all(name.startswith("module.") for name in weights):  # saved from DataParallel
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return Checkpoint(weights, meta, sketch, str(path), sha256(content))


def load_header(path: str | Path) -> Checkpoint:
    """Read the header of a ``.safetensors`` file: all that is known of the weights but themselves.

    Args:
        path: The file.

    Returns:
        A checkpoint without digest whose tensors are on torch's device ``"meta"``.

    Raises:
        CheckpointError: If the file is missing, or no whole safetensors file by its header.
    """
    path = Path(path)
    try:
        check_regular(path)
        with open(path, "rb") as stream:
            shapes, metadata = safetensors_shapes(stream, path.stat().st_size)
        tensors = {
            name: torch.empty(
                shape, dtype=torch.float32 if kind in _FLOATS else torch.int64, device="meta"
            )
            for name, (kind, shape) in shapes.items()
        }
    except OSError as error:
        raise _cannot_read(path, error) from error
    except (ValueError, RuntimeError) as error:  # torch has no tensors of some claimed shapes
        raise _not_whole(path, error) from error
    meta = _parse_meta(metadata.get(_META, "{}"), path)
    weights = {k: v for k, v in tensors.items() if not k.startswith(_SKETCH)}
    return Checkpoint(weights, meta, source=str(path))


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the same content gives the same bytes, whenever and wherever.

    Args:
        path: A ``.pt``, ``.pth`` or ``.safetensors`` file, replaced in one step.
        checkpoint: What to write; without sketch a safetensors file holds only the weights and
            opens in any other tool.

    Raises:
        RunError: If the suffix is unknown or the place cannot be written.
    """
    path = Path(path)
    check_output(path, SUFFIXES)
    weights = {k: v.detach().cpu().contiguous() for k, v in checkpoint.weights.items()}
    meta = canonical_json(checkpoint.meta)
    if path.suffix == ".safetensors":
        # Tied weights share storage, which the format refuses: write each under its own name.
        tensors = {k: v.clone() for k, v in weights.items()}
        tensors.update({_SKETCH + k: v.contiguous() for k, v in checkpoint.sketch.items()})
        content = safetensors.torch.save(tensors, {_META: meta})
    else:
        content = torch_bytes({_META: meta, "state_dict": weights, "sketch": checkpoint.sketch})
    write_bytes(path, content)


def torch_bytes(content: dict[str, Any]) -> bytes:
    """Return what ``torch.save`` writes: the same bytes whatever the file will be called."""
    buffer = io.BytesIO()  # torch puts the name of a file that it writes into the archive
    torch.save(content, buffer)
    return buffer.getvalue()


def read_safetensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file's bytes.

    Args:
        content: The bytes.
        path: Where they came from, for messages.

    Returns:
        Tensors by name, and the free metadata of the header.

    Raises:
        CheckpointError: If the bytes are not a whole safetensors file.
    """
    try:
        metadata = check_safetensors(content)
        tensors = safetensors.torch.load(content)
    except Exception as error:  # the reader raises its own types, none of them documented
        raise _not_whole(path, error) from error
    return tensors, metadata


def _not_whole(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole safetensors file ({first_line(error)}); copy it again"
    )


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise _cannot_read(path, error) from error


def _cannot_read(path: Path, error: OSError) -> CheckpointError | RunError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"no file {path}; check the name")
    reason = (error.strerror or str(error)).lower()
    return RunError(f"cannot read {path} ({reason}); check the path and permissions")


def _read_torch(
    content: bytes, path: Path
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    try:
        check_torch(content)
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except ForeignObjectError as error:
        raise CheckpointError(
            f"{path} holds pickled objects or a script ({error}), expected a state dict of plain "
            f"tensors, and geomerge never unpickles; {HOW_TO_SAVE}"
        ) from error
    except Exception as error:  # zipfile and torch raise many types
        raise CheckpointError(
            f"{path} is not a whole PyTorch file ({first_line(error)}); copy it again"
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}, expected a state dict; {HOW_TO_SAVE}"
        )
    if isinstance(loaded.get(_META), str):
        meta = _parse_meta(loaded[_META], path)
        parts = [loaded.get(part, {}) for part in ("state_dict", "sketch")]
        if not all(isinstance(part, Mapping) for part in parts):
            raise CheckpointError(f"{path} is not a whole geomerge checkpoint; write it again")
        return dict(parts[0]), meta, dict(parts[1])
    for name in _WRAPPERS:
        if isinstance(loaded.get(name), Mapping):
            return dict(loaded[name]), {}, {}
    return dict(loaded), {}, {}


def _parse_meta(text: str, path: Path) -> dict[str, Any]:
    try:
        meta = parse_json(text)
    except ValueError as error:
        raise CheckpointError(
            f"the geomerge metadata of {path} is not JSON ({first_line(error)}); write it again"
        ) from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"the geomerge metadata of {path} is not an object; write it again")
    for name, kinds in _KINDS.items():
        if name in meta and not isinstance(meta[name], kinds):
            raise CheckpointError(
                f"{name!r} in the geomerge metadata of {path} is a {type(meta[name]).__name__}, "
                f"expected a {kinds[0].__name__}; write it again"
            )
    return meta
