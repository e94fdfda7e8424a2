"""What identifies a run, and a run folder that is there already."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.comparison import CompareOptions
from geomerge.errors import RunError, first_line
from geomerge.io.checkpoint import Checkpoint
from geomerge.io.files import canonical_json, parse_json, sha256, write_bytes
from geomerge.merging import MergeOptions
from geomerge.merging.sides import NAMES
from geomerge.pruning.options import SparsifyOptions
from geomerge.runs.stream_options import StreamOptions

__all__ = [
    "command_line",
    "finished",
    "folder_of",
    "input_digests",
    "read_json",
    "unfinished",
    "write_json",
]


def folder_of(out: str | Path | None, stems: str, recipe: dict[str, Any]) -> Path:
    """Return the run's folder: as told, or named by its inputs and its recipe."""
    digest = sha256(canonical_json(recipe).encode())
    return Path(out) if out else Path("runs") / f"{stems}-{digest[:8]}"


def input_digests(networks: Sequence[Checkpoint], options: MergeOptions) -> dict[str, str]:
    """Return the SHA-256 of the files of networks, and of the sketches that options name."""
    digests = {name: c.digest for name, c in zip(NAMES, networks, strict=False)}
    for name, file in options.by_network("sketch").items():
        if Path(file).is_file():
            digests[f"sketch of {name}"] = sha256(Path(file).read_bytes())
    return digests


def finished(folder: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return the report of a finished run of the same recipe, None where there is no run.

    Raises:
        RunError: If the folder holds a damaged run or one of another recipe.
    """
    if not (folder / "recipe.json").is_file():
        return None
    old, report = read_json(folder / "recipe.json"), read_json(folder / "report.json")
    if old != recipe:
        raise RunError(
            f"{folder} holds a finished run of another recipe; choose another --out or remove it"
        )
    shutil.rmtree(folder / "work", ignore_errors=True)  # of a run killed as it finished
    return report


def unfinished(recipe: dict[str, Any], device: str) -> dict[str, Any]:
    """Return all that decides the bits of a run: another process that goes on must have the same.

    Args:
        recipe: What identifies the run.
        device: Where it computes.
    """
    made_with = {"geomerge": geomerge.__version__, "torch": torch.__version__, "device": device}
    return {**recipe, "made_with": made_with}


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a run's file holds.

    Raises:
        RunError: If there is none.
    """
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"{file.name} is no object")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file.parent} holds a damaged run ({first_line(error)}); remove it"
        ) from error
    return found


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON for people and programs."""
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())


_PLACES = ("data_root", "download", "device")  # of one machine; they decide no result
_JOINED = ("only", "skip")  # all in one word
_NAMES = {  # where the command line says it otherwise; the stream's name is its argument
    (SparsifyOptions, "choice"): "choose",
    (StreamOptions, "rates"): "rate",
    (StreamOptions, "stream"): None,
}


def command_line(command: str, subjects: Sequence[str | Path], options: Any, **more: Any) -> str:
    """Return a command line that says all that is not usual, and of files no more than the names.

    Args:
        command: Of ``geomerge``.
        subjects: Its arguments: files, or the name of a stream.
        options: A dataclass of options.
        more: Options that the dataclass does not have.
    """
    words = ["geomerge", command, *_short(subjects)]
    words += _said(options)
    for name, value in more.items():
        words += _flag(name, value)
    return shlex.join(words)


def _short(files: Sequence[str | Path]) -> list[str]:
    """Return files with as few of their folders as it takes to tell them apart."""
    parts = [Path(file).parts for file in files]
    most = max(map(len, parts), default=1)
    for count in range(1, most + 1):
        names = [str(Path(*part[-count:])) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(file) for file in files]


def _said(options: Any) -> list[str]:
    words: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        name = _NAMES.get((type(options), field.name), field.name)
        if isinstance(options, CompareOptions) and field.name == "merge":
            words += _said(value)
        elif name is not None and field.name not in _PLACES and value != field.default:
            words += _flag(name, value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, tuple) and name in _JOINED:
        return [flag, ",".join(map(str, value))]
    if isinstance(value, tuple):
        return [word for one in value for word in (flag, _word(name, one))]
    return [flag, _word(name, value)]


def _word(name: str, value: Any) -> str:
    if name == "sketch":  # b=FILE
        network, _, file = str(value).partition("=")
        return f"{network}={Path(file).name}"
    return Path(value).name if isinstance(value, Path) else str(value)
