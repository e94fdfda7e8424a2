"""Checkpoints: named tensors of a network in a file, with metadata.

Files of ``torch.save``, ``pickle.dump`` and ``numpy.savez`` and safetensors are read, told by their
content and never by their ending. Nothing is ever unpickled. A checkpoint written by geomerge
carries a JSON text (architecture, task, normalisation, training recipe) and may carry the tensors
of a sketch.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError, CheckpointWarning, RunError, first_line, type_of
from geomerge.io import paged
from geomerge.io.containers import (
    HOW_TO_SAVE,
    UnreadTypeError,
    check_plain,
    check_safetensors,
    safetensors_header,
)
from geomerge.io.files import (
    canonical_json,
    check_output,
    check_regular,
    file_sha256,
    parse_json,
    read_regular,
    sha256,
    write_bytes,
    write_tensors,
)
from geomerge.io.formats import format_of, refuse_other_format
from geomerge.io.npz import read_npz
from geomerge.io.pickles import StoredArray, StoredTensor
from geomerge.io.precision import in_precision, stored_dtype, with_dtype
from geomerge.io.run_files import result_file
from geomerge.io.state_dicts import (
    choose_state_dict,
    nameless_in,
    plain_names,
    state_dicts_in,
    unread_in,
)
from geomerge.io.torch_files import TorchFile, read_torch

__all__ = [
    "SUFFIXES",
    "Checkpoint",
    "is_safetensors",
    "load_checkpoint",
    "load_header",
    "map_safetensors",
    "read_safetensors",
    "save_checkpoint",
    "torch_bytes",
]

SUFFIXES = (".pt", ".pth", ".safetensors")
_META = "geomerge"
_SKETCH = "geomerge.sketch/"
_FLOATS = ("F64", "F32", "F16", "BF16")  # types of the format
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
        meta: Metadata: ``architecture``, ``task``, ``normalisation``, ``training``, ...;
            empty for a bare state dict.
        sketch: Tensors of the sketch of this network on its own task; empty without one.
        source: The file it was read from, for messages.
        digest: SHA-256 of the file's bytes, empty if it never was a file.
        notes: Sentences about what was chosen when the file was read.

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
    notes: tuple[str, ...] = ()


def load_checkpoint(
    path: str | Path, *, weights_key: str | None = None, leave_out: Sequence[str] = ()
) -> Checkpoint:
    """Read a checkpoint or a bare state dict without unpickling anything.

    What the file claims is held against its bytes first (:mod:`geomerge.io.containers`), so that a
    file made to do harm costs no more than one that is damaged. The state dict is found under any
    key, with whatever else a training loop saved beside it, and loses the names of wrappers
    (``DataParallel``, ``torch.compile``, ``AveragedModel``).

    Args:
        path: A file of ``torch.save``, of ``pickle.dump`` or of ``numpy.savez``, or a safetensors
            file, whatever its ending; or the folder of a finished run, whose result is taken.
        weights_key: Key of the state dict, where a file holds several, such as ``"model_ema"``;
            None takes the network's own, with a note where there was a choice.
        leave_out: Names of tensors that are left out; ``*`` stands for any text, as in ``"aux.*"``.

    Returns:
        The weights on the CPU in float32 (integer buffers keep their type); ``meta["dtype"]`` is
        ``"float16"`` or ``"bfloat16"`` where that is the type of all of them in the file.

    Raises:
        CheckpointError: If the file is missing, damaged, claims more than it has, holds no state
            dict of plain tensors, or a number that is not finite.

    Warns:
        CheckpointWarning: If the file holds several state dicts and none is named.

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
    if path.is_dir():
        path = result_file(path)
    weights, meta, sketch, note, digest = _content(path, weights_key)
    if leave_out:
        weights = _without(weights, leave_out, path)
    if not weights:
        raise CheckpointError(f"{path} holds no weights; {HOW_TO_SAVE}")
    check_plain(weights, path, masks=True)
    check_plain(sketch, path)
    meta = with_dtype(meta, stored_dtype(weights))
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    if note:
        warnings.warn(note, CheckpointWarning, stacklevel=2)
    notes = (note,) if note else ()
    return Checkpoint(plain_names(weights), meta, sketch, str(path), digest, notes)


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file is one of safetensors by its first bytes, so that it has a header."""
    try:
        check_regular(Path(path))
        with open(path, "rb") as stream:
            return format_of(stream.read(64)) == "safetensors"
    except OSError:
        return False


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
        shapes, metadata = safetensors_header(path)
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


def save_checkpoint(
    path: str | Path, checkpoint: Checkpoint | nn.Module | Mapping[str, Tensor]
) -> None:
    """Write a checkpoint; the same content gives the same bytes, whenever and wherever.

    Args:
        path: A ``.pt``, ``.pth`` or ``.safetensors`` file, replaced in one step.
        checkpoint: Weights with metadata and sketch, or a module or a state dict alone. Without a
            sketch a safetensors file holds only the weights and opens in any other tool. They are
            written in the type that ``meta["dtype"]`` names.

    Raises:
        RunError: If the suffix is unknown or the place cannot be written.
        OptionError: If a number is too large for the type.
    """
    path = Path(path)
    check_output(path, SUFFIXES)
    if isinstance(checkpoint, nn.Module):
        checkpoint = checkpoint.state_dict()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(dict(checkpoint))
    weights = {k: v.detach().cpu().contiguous() for k, v in checkpoint.weights.items()}
    weights = in_precision(weights, checkpoint.meta.get("dtype"))
    meta = canonical_json(checkpoint.meta)
    if path.suffix == ".safetensors":
        sketch = {_SKETCH + k: v for k, v in checkpoint.sketch.items()}
        write_tensors(path, {**weights, **sketch}, {_META: meta})
    else:
        content = torch_bytes({_META: meta, "state_dict": weights, "sketch": checkpoint.sketch})
        write_bytes(path, content)


def torch_bytes(content: dict[str, Any]) -> bytes:
    """Return the bytes of ``torch.save``, which do not depend on the name of the file."""
    buffer = io.BytesIO()  # torch puts the name of a file that it writes into the archive
    torch.save(content, buffer)
    return buffer.getvalue()


def read_safetensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file's bytes.

    Args:
        content: The bytes.
        path: Name of their source, for messages.

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


def map_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, read from the disk as they are used, and metadata.

    Args:
        path: The file, which must not be written to as long as the tensors are used.

    Raises:
        OSError: If it cannot be read, or is a device or a pipe.
        CheckpointError: If it is not a whole safetensors file.
    """
    try:
        metadata = safetensors_header(path)[1]
        return safetensors.torch.load_file(path), metadata
    except OSError:
        raise
    except Exception as error:  # the reader raises its own types, none of them documented
        raise _not_whole(path, error) from error


def _not_whole(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, UnreadTypeError):
        return CheckpointError(
            f"{path} holds {error}, expected floats of 16 bits or more; give the weights that it "
            "was made from, or convert them to float32"
        )
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


_SAME = ("st_ino", "st_size", "st_mtime_ns")  # of a file that is left alone
_Parts = tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor], str]


def _content(path: Path, key: str | None) -> tuple[*_Parts, str]:
    """Return weights, metadata, sketch, a note on what was chosen, and the digest of a file."""
    large = path.is_file() and paged.in_file(path.stat().st_size)
    if not large or not is_safetensors(path):
        content = _read(path)
        return *_parse(content, path, key), sha256(content)
    try:
        before = path.stat()
        (mapped, metadata), digest = map_safetensors(path), file_sha256(path)
        # Copied even if they are a little smaller than the file, which may be written to later.
        tensors = paged.stored(mapped, paged.LEAST)
        after = path.stat()
    except OSError as error:
        raise _cannot_read(path, error) from error
    if any(getattr(before, part) != getattr(after, part) for part in _SAME):
        raise CheckpointError(
            f"{path} was replaced or written to while it was read, expected a finished file; read "
            "it again when its writer is done"
        )
    return *_of_safetensors(tensors, metadata, path), digest


def _of_safetensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path
) -> _Parts:
    meta = _parse_meta(metadata.get(_META, "{}"), path)
    weights = {k: v for k, v in tensors.items() if not k.startswith(_SKETCH)}
    sketch = {k[len(_SKETCH) :]: v for k, v in tensors.items() if k.startswith(_SKETCH)}
    return weights, meta, sketch, ""


def _parse(content: bytes, path: Path, key: str | None) -> _Parts:
    """Return weights, metadata, sketch and a note on what was chosen, of a file's bytes."""
    form = format_of(content)
    if form == "safetensors":
        return _of_safetensors(*read_safetensors(content, path), path)
    refuse_other_format(content, path)
    if form in ("torch", "pickle"):
        return _parse_torch(content, path, key)
    try:
        if form != "npz":
            raise ValueError(f"it begins with {content[:8].hex(' ')}")
        arrays, _ = read_npz(content)
        weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # zipfile, numpy and torch raise many types
        raise CheckpointError(
            f"{path} is no file of weights ({first_line(error)}), expected one of torch.save or "
            "safetensors; check that it is the right file and whole"
        ) from error
    return weights, {}, {}, ""


def _parse_torch(content: bytes, path: Path, key: str | None) -> _Parts:
    try:
        file = read_torch(content)
    except Exception as error:  # zipfile and torch raise many types
        raise CheckpointError(
            f"{path} is not a whole PyTorch file ({first_line(error)}); copy it again"
        ) from error
    loaded = file.content
    if type(loaded) is dict and isinstance(loaded.get(_META), str):
        meta = _parse_meta(loaded[_META], path)
        parts = [loaded.get(part, {}) for part in ("state_dict", "sketch")]
        if not all(type(part) is dict for part in parts):
            raise CheckpointError(
                f"{path} is not a whole geomerge checkpoint, expected a state dict and a sketch in "
                "it; write it again"
            )
        return _built(file, parts[0], path), meta, _built(file, parts[1], path), ""
    found = state_dicts_in(loaded)
    unread = unread_in(loaded if not found else [dict(c.others) for c in found])
    if unread is not None:
        raise CheckpointError(
            f"{path} holds {unread}, expected a state dict of plain tensors, and geomerge never "
            f"unpickles; {HOW_TO_SAVE}"
        )
    if not found and (unnamed := nameless_in(loaded)) is not None:
        raise CheckpointError(
            f"{path} holds tensors without names under {unnamed!r}, expected a state dict; copy "
            "them to the parameters of a module in their order, and save its state_dict()"
        )
    if not found:
        raise CheckpointError(f"{path} holds no weights ({_contents(loaded)}); {HOW_TO_SAVE}")
    chosen = choose_state_dict(found, key, str(path))
    note = ""
    if key is None and len(found) > 1:
        others = [c for c in found if c is not chosen]
        note = (
            f"{path.name} holds weights under {chosen.key!r}, which were taken, and under "
            f"{' and '.join(repr(c.key) for c in others)}; name one with `weights_key`"
        )
        parts = [c for c in others if c.shapes != chosen.shapes]
        if chosen.key and parts:
            joined = ",".join(c.key for c in found if c is chosen or c in parts)
            note += f", or {joined} where these are parts of one network"
    return _built(file, chosen.tensors, path), {}, {}, note


def _built(file: TorchFile, stored: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors that a file describes."""
    tensors = {}
    for name, value in stored.items():
        if not isinstance(name, str) or not isinstance(value, (StoredTensor, StoredArray)):
            raise CheckpointError(
                f"{path} holds {type_of(value)} under {str(name)[:60]!r}, expected only "
                f"tensors; {HOW_TO_SAVE}"
            )
        try:
            tensors[name] = file.tensor(value)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{name[:60]!r} of {path} is {first_line(error)}, expected a plain tensor; "
                f"{HOW_TO_SAVE}"
            ) from error
    return tensors


def _contents(loaded: Any) -> str:
    """Return the contents of a file without weights, for messages."""
    if type(loaded) is not dict or not loaded:
        return f"a {getattr(loaded, 'name', type(loaded).__name__)}"
    names = [str(name)[:30] for name in loaded]
    return "only " + ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _without(
    weights: Mapping[str, Tensor], leave_out: Sequence[str], path: Path
) -> dict[str, Tensor]:
    for pattern in leave_out:
        if not any(fnmatchcase(name, pattern) for name in weights):
            raise CheckpointError(
                f"`leave_out` names {pattern!r}, and {path} has no such tensor; correct it"
            )
    return {
        name: value
        for name, value in weights.items()
        if not any(fnmatchcase(name, pattern) for pattern in leave_out)
    }


def _parse_meta(text: str, path: Path) -> dict[str, Any]:
    try:
        meta = parse_json(text)
    except ValueError as error:
        raise CheckpointError(
            f"the geomerge metadata of {path} is not JSON ({first_line(error)}); write it again"
        ) from error
    if not isinstance(meta, dict):
        raise CheckpointError(
            f"the geomerge metadata of {path} is {type_of(meta)}, expected an object; write it "
            "again"
        )
    for name, kinds in _KINDS.items():
        if name in meta and not isinstance(meta[name], kinds):
            raise CheckpointError(
                f"{name!r} in the geomerge metadata of {path} is {type_of(meta[name])}, expected "
                f"a {kinds[0].__name__}; write it again"
            )
    return meta
