"""Write files so that nothing is ever half-written, and name their bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geomerge.errors import RunError

__all__ = ["canonical_json", "check_output", "sha256", "staged_folder", "write_bytes"]


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
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``final`` when the block ends without an error.

    Args:
        final: The folder to make; it may exist only if it is empty.

    Yields:
        A folder beside ``final`` to write into; it is removed if the block raises.

    Raises:
        RunError: If ``final`` has content or its parent cannot be written.
    """
    final = Path(final)
    try:
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            raise RunError(f"{final} exists and is not empty; choose another --out or remove it")
        made = [p for p in final.parents if not p.exists()]
        final.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    except RunError:
        raise
    except OSError as error:
        raise _cannot_write(final, error) from error
    try:
        yield stage
        for file in stage.rglob("*"):
            if file.is_file():
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
        os.chmod(stage, 0o777 & ~_umask())
        os.replace(stage, final)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        for parent in made:  # innermost first; another run may have begun in one meanwhile
            with suppress(OSError):
                parent.rmdir()
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _cannot_write(path: Path, error: OSError) -> RunError:
    reason = (error.strerror or str(error)).lower()
    return RunError(f"cannot write {path} ({reason}); choose a folder that you may write to")
