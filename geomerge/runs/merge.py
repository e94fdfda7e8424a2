"""Run of a merge: files in, the folder of a finished run out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from geomerge.certificate.certificate import certificate
from geomerge.errors import RunError
from geomerge.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from geomerge.merging import MergeOptions, comparison, curves, look_at, merge
from geomerge.monitor.progress import Progress
from geomerge.report import merge_report, write_examples
from geomerge.runs.command import command_line
from geomerge.runs.folder import RunFolder, input_digests

__all__ = ["run_merge"]


def run_merge(
    files: Sequence[str | Path],
    options: MergeOptions,
    *,
    out: str | Path | None = None,
    pt: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Merge files and write the run: recipe, path, report, pictures, merged network.

    Args:
        files: Files of the networks.
        options: Options of the merge.
        out: Folder of the run; default ``runs/A-B-HASH`` of their names.
        pt: Whether to write ``merged.pt`` besides ``merged.safetensors``.
        on_progress: Function that is called after each step.

    Returns:
        The folder, its report, and whether it had been finished before (nothing was changed).

    Raises:
        GeomergeError: If inputs, options or data are wrong, or the folder holds another run.
    """
    command = command_line("merge", files, options)
    networks = [load_checkpoint(file) for file in files]
    recipe = options.recipe(input_digests(networks, options))
    run = RunFolder(out, "-".join(Path(file).stem for file in files), recipe, command)
    if run.before:
        if pt and not (run.path / "merged.pt").exists():
            raise RunError(
                f"{run.path} was finished without merged.pt; write it with geomerge path {run.path}"
            )
        return run.outcome
    with run.unfinished(options.device, ["merged.pt"]) as folder:
        work = folder / "work"
        merged = merge(
            networks, options, folder=folder / "path", work=work, on_progress=on_progress
        )
        options = merged.options
        rows = comparison(merged, options, on_progress, work / "beside")
        seen = look_at(merged)
        report = merge_report(merged, options, recipe, rows, curves(merged), seen)
        _write_network(folder, merged.checkpoint(), report, pt)
        write_examples(folder, seen.answers)
        run.finish(
            folder,
            report,
            tasks={s.name: s.task for s in merged.sides},
            certify=partial(certificate, folder, merged, options),
        )
    return run.outcome


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
