"""Write files so that nothing is ever half-written, and name their bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from geomerge.errors import RunError

__all__ = [
    "cannot_write",
    "canonical_json",
    "check_output",
    "default_mode",
    "sha256",
    "write_bytes",
]


def sha256(content: bytes) -> str:
    """Return the SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse an output file before the work that would fill it.

    Args:
        path: Where the file will go.
        suffixes: Endings that its name may have.

    Raises:
        RunError: If the name ends otherwise, is a folder's, or its folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise RunError(
            f"expected an output name ending in {' or '.join(suffixes)}, got {path}; rename it"
        )
    if path.is_dir():
        raise RunError(f"{path} is a folder, expected the name of a file; choose another")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"cannot write into {parent}; choose a folder that you may write to")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a temporary name, fsync and rename.

    Args:
        path: Where the file goes; an existing file is replaced in one step.
        content: All of its bytes.

    Raises:
        RunError: If the folder is missing or cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, default_mode(0o666))
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def default_mode(most: int) -> int:
    """Return the permissions that a new file or folder gets here."""
    current = os.umask(0)
    os.umask(current)
    return most & ~current


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the error that says why a place cannot be written."""
    reason = (error.strerror or str(error)).lower()
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full:
        remedy = "make room and run the command again"
    else:
        remedy = "choose a folder that you may write to"
    return RunError(f"cannot write {path} ({reason}); {remedy}")
