"""Atomic writes of files, and SHA-256 digests of their bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from geomerge.errors import RunError, first_line
from geomerge.io import paged

__all__ = [
    "cannot_write",
    "canonical_json",
    "check_output",
    "check_regular",
    "copy_file",
    "default_mode",
    "file_sha256",
    "parse_json",
    "plain_file",
    "read_regular",
    "sha256",
    "write_bytes",
    "write_tensors",
]


def sha256(content: bytes) -> str:
    """Return the SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, without reading it whole at once.

    Raises:
        OSError: If it cannot be read, or is a device or a pipe.
    """
    check_regular(path)
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def check_output(path: Path, suffixes: tuple[str, ...], *, replace: bool = True) -> None:
    """Refuse an output file before the work that would fill it.

    Args:
        path: Path of the output file.
        suffixes: Endings that its name may have.
        replace: Whether a file that is there may be replaced.

    Raises:
        RunError: If the name ends otherwise, is a folder's or, where it may not be replaced, a
            file's, or its folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise RunError(
            f"expected an output name ending in {' or '.join(suffixes)}, got {path}; rename it"
        )
    if path.is_dir():
        raise RunError(f"{path} is a folder, expected the name of a file; choose another")
    if not replace and (path.exists() or path.is_symlink()):
        raise RunError(f"{path} exists; choose another `out`, or `force` to have it replaced")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"cannot write into {parent}; choose a folder that you may write to")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a temporary name, fsync and rename.

    Args:
        path: Path of the file; an existing file is replaced in one step.
        content: All of its bytes.

    Raises:
        RunError: If the folder is missing or cannot be written.
    """
    _replace(path, lambda temporary: temporary.write_bytes(content))


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content as :func:`write_bytes` writes it, whole or not at all.

    Args:
        source: File to read.
        path: Path of the copy; an existing file is replaced in one step.

    Raises:
        RunError: If the folder is missing or cannot be written.
    """
    _replace(path, lambda temporary: shutil.copyfile(source, temporary))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file as :func:`write_bytes` does, without a copy of its bytes.

    Args:
        path: Path of the file; an existing file is replaced in one step.
        tensors: Tensors by name, on the CPU. Of those that share memory, as tied weights do, each
            is written under its own name.
        metadata: Texts by name in the file's header.

    Raises:
        RunError: If the folder is missing or cannot be written.
    """
    apart = _apart(tensors)
    paged.give_back()  # the writer reads all of the tensors at once
    _replace(path, lambda temporary: save_file(apart, temporary, dict(metadata or {}) or None))
    paged.release(*apart.values())


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors of which no two share memory, which the format refuses."""
    found, taken = {}, 0
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    for name, tensor in sorted(whole.items(), key=lambda item: item[1].data_ptr()):
        start = tensor.data_ptr()
        found[name] = tensor.clone() if start < taken else tensor
        taken = max(taken, start + tensor.nbytes)
    return {name: found[name] for name in tensors}


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under a temporary name, and give it its own."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise cannot_write(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "r+b") as stream:  # safetensors puts another file in its place
            os.fsync(stream.fileno())
        temporary.chmod(default_mode(0o666))
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise cannot_write(path, _as_os_error(error)) from error
        raise


def _as_os_error(error: OSError | SafetensorError) -> OSError:
    """Return the operating system's error that safetensors has put into words."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    if number is None:
        return OSError(None, first_line(error))
    return OSError(int(number[1]), os.strerror(int(number[1])))


def default_mode(most: int) -> int:
    """Return the permissions that a new file or folder gets here."""
    current = os.umask(0)
    os.umask(current)
    return most & ~current


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the error with the reason why a place cannot be written."""
    reason = (error.strerror or str(error)).lower()
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full:
        remedy = "make room and run the command again"
    else:
        remedy = "choose a folder that you may write to"
    return RunError(f"cannot write {path} ({reason}); {remedy}")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If it is no JSON, is nested too deeply, or names a thing twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_names_once)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def _names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the name {twice[:40]!r} twice")
    return found


def plain_file(folder: Path, name: Any) -> Path:
    """Return a file that lies in a folder itself, as its index names it.

    Args:
        folder: The folder.
        name: Name in the index.

    Raises:
        ValueError: If the name leads elsewhere, by its own parts or by a symbolic link.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{str(name)[:60]!r} is no name of a file in the folder")
    file = folder / name
    if file.resolve().parent != folder.resolve():
        raise ValueError(f"{name[:60]!r} leads out of the folder")
    return file


def check_regular(file: Path) -> None:
    """Refuse a file that may have no end: a device, a pipe.

    Raises:
        OSError: If it is one.
    """
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise OSError(None, "not a regular file", str(file))


def read_regular(file: Path) -> bytes:
    """Return the bytes of a file that has an end.

    Raises:
        OSError: If it cannot be read, or is a device or a pipe.
    """
    check_regular(file)
    return file.read_bytes()
