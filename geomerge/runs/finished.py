"""A run folder that is there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from geomerge.errors import RunError
from geomerge.files import canonical_json, sha256, write_bytes

__all__ = ["finished", "folder_of", "write_json"]


def folder_of(out: str | Path | None, stems: str, recipe: dict[str, Any]) -> Path:
    """Return the run's folder: as told, or named by its inputs and its recipe."""
    digest = sha256(canonical_json(recipe).encode())
    return Path(out) if out else Path("runs") / f"{stems}-{digest[:8]}"


def finished(folder: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return the report of a finished run of the same recipe, None where there is no run.

    Raises:
        RunError: If the folder holds a damaged run or one of another recipe.
    """
    if not (folder / "recipe.json").is_file():
        return None
    try:
        old = json.loads((folder / "recipe.json").read_text())
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds a damaged run ({error}); remove it") from error
    if old != recipe:
        raise RunError(
            f"{folder} holds a finished run of another recipe; choose another --out or remove it"
        )
    return report


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON for people and programs."""
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())
