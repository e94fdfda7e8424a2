"""Read text and files that others wrote: with an end, in their folder, and JSON of sane depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["check_regular", "parse_json", "plain_file", "read_regular"]


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text says.

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
        name: What the index says.

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
