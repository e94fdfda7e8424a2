"""A stream that was learned, on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from geomerge.runs.folder import RunFolder

__all__ = ["run_stream"]


def run_stream(
    name: str,
    recipe: dict[str, Any],
    command: str,
    learn: Callable[[Path], dict[str, Any]],
    out: str | Path | None = None,
    device: str = "cpu",
) -> tuple[Path, dict[str, Any], bool]:
    """Learn a stream and write the run: recipe, report, table, picture.

    Args:
        name: The stream's.
        recipe: What decides the result.
        command: The command that makes it.
        learn: Trains and measures all rows, and keeps those that are finished in the folder that it
            is given; called if the run is not there yet.
        out: The run's folder; default ``runs/NAME-HASH``.
        device: Where rows are trained.

    Returns:
        The folder, its report, and whether it had been finished before (nothing was changed).

    Raises:
        GeomergeError: If the folder holds another run or cannot be written, or by ``learn``.
    """
    run = RunFolder(out, name, recipe, command)
    if not run.before:
        with run.unfinished(device) as folder:
            run.finish(folder, {**learn(folder / "work"), "recipe": recipe})
    return run.outcome
