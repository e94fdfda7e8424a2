"""What identifies a run, and a run folder that is there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.checkpoint import Checkpoint
from geomerge.errors import RunError, first_line
from geomerge.files import canonical_json, sha256, write_bytes
from geomerge.merging import MergeOptions
from geomerge.merging.sides import NAMES
from geomerge.reading import parse_json

__all__ = ["finished", "folder_of", "input_digests", "read_json", "unfinished", "write_json"]


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
