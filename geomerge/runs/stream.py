"""Run folders of streams."""

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
        name: Name of the stream.
        recipe: Everything that decides the result.
        command: Command that makes the run.
        learn: Function of a folder that trains and measures all rows, stores the finished ones in
            the folder, and returns the report; called if the run is not finished.
        out: Folder of the run; None takes ``runs/NAME-HASH``.
        device: Device that trains rows.

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
