"""A stream that was learned, on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geomerge.io.files import write_bytes
from geomerge.io.folders import resumable_folder
from geomerge.report.stream import draw_stream, stream_table
from geomerge.runs.folder import finished, folder_of, unfinished, write_json
from geomerge.runs.page import write_report

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
    folder = folder_of(out, name, recipe)
    before = finished(folder, recipe)
    if before is not None:
        return folder, before, True
    with resumable_folder(folder, unfinished(recipe, device)) as stage:
        report = learn(stage / "work")
        report["recipe"] = recipe
        report["command"] = command
        draw_stream(report, stage / "stream.png")
        write_bytes(stage / "table.md", _markdown(report).encode())
        write_json(stage / "recipe.json", recipe)
        write_report(stage, report)
    return folder, report, False


def _markdown(report: dict[str, Any]) -> str:
    stream, network = report["stream"], report["network"]
    headings, rows = stream_table(report)
    lines = [
        f"# {stream['name']}: {len(stream['experiences'])} experiences, seed {stream['seed']}",
        "",
        f"{network['architecture']} with {network['parameters']:,} parameters; "
        f"{stream['meaning']}.",
        "",
        _line(headings),
        _line(["---", *["---:"] * (len(headings) - 1)]),
        *map(_line, rows),
        "",
        "acc, BWT and forget are accuracies on the test splits, in percent: average over all tasks "
        "after the last, mean change of each task since it was learned (backward transfer), mean "
        "loss since it was best. MB, inputs and labels are of what is kept between experiences "
        "beside the network itself; labels are those that it was made with. passes: examples "
        "passed forwards and backwards, in epochs; train and merge: seconds.",
        "",
        *[f"- {row['name']}: {row['about']}" for row in report["rows"]],
        *[f"- {name} is not in the table: {why}" for name, why in report["diverged"].items()],
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
