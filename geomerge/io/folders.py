"""Atomic writes of folders, by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from geomerge.errors import GeomergeError, RunError
from geomerge.io.files import cannot_write, default_mode, parse_json, write_bytes

__all__ = ["TemporaryFolder", "place_of", "resumable_folder", "staged_folder"]

_LOCK = ".lock"
_RECIPE = "unfinished.json"
_NAMED = 3  # differences of two recipes


class TemporaryFolder:
    """A folder that is removed when its object is no longer referred to.

    Attributes:
        path: Path of the folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="geomerge-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def place_of(folder: str | Path | None) -> tuple[Path, TemporaryFolder | None]:
    """Return a folder to write into, and the owner of a temporary one if None is given."""
    if folder is not None:
        return Path(folder), None
    temporary = TemporaryFolder()
    return temporary.path, temporary


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``final`` when the block ends without an error.

    Args:
        final: Folder to make; it may exist only if it is empty.

    Yields:
        Folder next to ``final`` to write into; it is removed if the block raises.

    Raises:
        RunError: If ``final`` has content or its parent cannot be written.
    """
    final = Path(final)
    try:
        _refuse_content(final)
        made = [p for p in final.parents if not p.exists()]
        final.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    except RunError:
        raise
    except OSError as error:
        raise cannot_write(final, error) from error
    try:
        yield stage
        _sync(stage)
        os.chmod(stage, default_mode(0o777))
        os.replace(stage, final)
    except BaseException:
        _remove(stage, made)
        raise


@contextmanager
def resumable_folder(final: Path, recipe: dict[str, Any]) -> Iterator[Path]:
    """Give an unfinished folder that becomes ``final`` when the block ends without an error.

    The next call for ``final`` gives the same folder. After a user's mistake it is removed, unless
    it holds the state of a walk.

    Args:
        final: Folder to make; it may exist only if it is empty.
        recipe: Everything that decides the content.

    Yields:
        Folder next to ``final`` to write into. Its subfolder ``work`` is removed in the end.

    Raises:
        RunError: If ``final`` has content or its parent cannot be written, if the unfinished
            folder is of another recipe, or if another process is at work on it.
    """
    final = Path(final)
    stage = final.parent / f".{final.name}.unfinished"
    work = stage / "work"
    try:
        made = [p for p in final.parents if not p.exists()]
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / _LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"another process works on {final}; wait for it or choose another `folder`"
        ) from error
    except OSError as error:
        raise cannot_write(final, error) from error
    try:
        _refuse_content(final)
        _same_recipe(work, recipe)
        for file in stage.rglob(".*"):  # half-written when the last process ended
            if file.is_file() and file.name != _LOCK:
                file.unlink()
        yield stage
        _sync(stage)
        os.chmod(stage, default_mode(0o777))
        try:
            os.replace(stage, final)
        except OSError as error:
            raise cannot_write(final, error) from error
        shutil.rmtree(final / "work", ignore_errors=True)
    except GeomergeError as error:
        nothing_kept = not (work / _RECIPE).exists()
        walked = any(work.rglob("state"))
        if nothing_kept or not (walked or isinstance(error, RunError)):
            _remove(stage, made)
        raise
    finally:
        lock.release()


def _refuse_content(final: Path) -> None:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise RunError(f"{final} exists and is not empty; choose another `folder` or remove it")


def _remove(stage: Path, made: list[Path]) -> None:
    """Remove a folder and the parents that were made for it."""
    shutil.rmtree(stage, ignore_errors=True)
    for parent in made:  # innermost first; another run may have begun in one meanwhile
        with suppress(OSError):
            parent.rmdir()


def _same_recipe(work: Path, recipe: dict[str, Any]) -> None:
    """Write the recipe of an unfinished run, or check that it is the same."""
    file, text = work / _RECIPE, json.dumps(recipe, indent=1) + "\n"
    if not file.exists():
        write_bytes(file, text.encode())
    elif (known := file.read_text()) != text:
        differs = ", ".join(_differences(known, text))
        raise RunError(
            f"{work.parent} holds an unfinished run of another recipe, version or device (another "
            f"{differs}); repeat the command of that run to continue it, remove it, or choose "
            "another `folder`"
        )


def _differences(one: str, other: str) -> list[str]:
    """Return the names of some entries in which two recipes differ, or of what they are in."""
    try:
        known, wanted = parse_json(one), parse_json(other)
        parts = [k for k in {**known, **wanted} if known.get(k) != wanted.get(k)]
    except (ValueError, TypeError):
        return ["file of the recipe"]
    found = []
    for part in parts:
        own, new = known.get(part), wanted.get(part)
        inside = isinstance(own, dict) and isinstance(new, dict)
        keys = [k for k in {**own, **new} if own.get(k) != new.get(k)] if inside else [""]
        found += [f"{part} {key}".strip() for key in keys]
    return found[:_NAMED]


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
