"""One merge on disk: inputs in, a finished run folder out, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geomerge.certificate.certificate import certificate
from geomerge.errors import RunError
from geomerge.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from geomerge.io.folders import resumable_folder
from geomerge.merging import MergeOptions, comparison, curves, look_at, merge
from geomerge.monitor.progress import Progress
from geomerge.report import draw_curves, draw_plane, merge_report, write_examples
from geomerge.report.card import write_merge_card
from geomerge.runs.folder import (
    command_line,
    finished,
    folder_of,
    input_digests,
    unfinished,
    write_json,
)
from geomerge.runs.page import write_report

__all__ = ["run_merge"]


def run_merge(
    files: Sequence[str | Path],
    options: MergeOptions,
    *,
    out: str | Path | None = None,
    pt: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Merge files and write the run: recipe, path, report, picture, merged network.

    Args:
        files: Files of the networks.
        options: How.
        out: The run's folder; default ``runs/A-B-HASH`` of their names.
        pt: Whether to write ``merged.pt`` beside ``merged.safetensors``.
        on_progress: Called after each step.

    Returns:
        The folder, its report, and whether it had been finished before (nothing was changed).

    Raises:
        GeomergeError: If inputs, options or data are wrong, or the folder holds another run.
    """
    command = command_line("merge", files, options)
    networks = [load_checkpoint(file) for file in files]
    recipe = options.recipe(input_digests(networks, options))
    folder = folder_of(out, "-".join(Path(file).stem for file in files), recipe)
    before = finished(folder, recipe)
    if before is not None:
        if pt and not (folder / "merged.pt").exists():
            raise RunError(
                f"{folder} was finished without merged.pt; make it with geomerge path {folder} "
                f"--at {before['crossover']['t']} --out merged.pt"
            )
        return folder, before, True
    with resumable_folder(folder, unfinished(recipe, options.device)) as stage:
        (stage / "merged.pt").unlink(missing_ok=True)  # an interrupted call may have had --pt
        work = stage / "work"
        merged = merge(networks, options, folder=stage / "path", work=work, on_progress=on_progress)
        options = merged.options
        rows = comparison(merged, options, on_progress, work / "beside")
        seen = look_at(merged)
        report = merge_report(merged, options, recipe, rows, curves(merged), seen)
        report["command"] = command
        _write_network(stage, merged.checkpoint(), report, pt)
        write_examples(stage, seen.answers)
        draw_curves(report, stage / "curves.png")
        if report["plane"] is not None:
            draw_plane(report, stage / "plane.png")
        write_merge_card(stage, report, command, {s.name: s.task for s in merged.sides})
        write_json(stage / "recipe.json", recipe)
        report["certificate"] = certificate(stage, merged, options, report)
        write_report(stage, report)
    return folder, report, False


def _write_network(folder: Path, checkpoint: Checkpoint, report: dict[str, Any], pt: bool) -> None:
    meta = {
        **checkpoint.meta,
        "merged": {
            "recipe": report["recipe"],
            "preset": report["preset"],
            "crossover": report["crossover"],
        },
    }
    named = Checkpoint(checkpoint.weights, meta)
    save_checkpoint(folder / "merged.safetensors", named)
    if pt:
        save_checkpoint(folder / "merged.pt", named)
