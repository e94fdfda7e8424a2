"""One merge on disk: inputs in, a finished run folder out, or nothing at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geomerge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from geomerge.errors import RunError
from geomerge.files import canonical_json, sha256, staged_folder, write_bytes
from geomerge.merging import MergeOptions, comparison, curves, merge
from geomerge.merging.monitor import Progress
from geomerge.merging.sides import NAMES
from geomerge.report import draw_curves, merge_report

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
    networks = [load_checkpoint(file) for file in files]
    digests = {name: c.digest for name, c in zip(NAMES, networks, strict=False)}
    for name, file in options.by_network("sketch").items():
        if Path(file).is_file():
            digests[f"sketch of {name}"] = sha256(Path(file).read_bytes())
    recipe = options.recipe(digests)
    digest = sha256(canonical_json(recipe).encode())
    stems = "-".join(Path(file).stem for file in files)
    folder = Path(out) if out else Path("runs") / f"{stems}-{digest[:8]}"
    finished = _finished(folder, recipe)
    if finished is not None:
        if pt and not (folder / "merged.pt").exists():
            raise RunError(
                f"{folder} was finished without merged.pt; make it with geomerge path {folder} "
                f"--at {finished['crossover']['t']} --out merged.pt"
            )
        return folder, finished, True
    with staged_folder(folder) as stage:
        merged = merge(networks, options, folder=stage / "path", on_progress=on_progress)
        rows = comparison(merged, options, on_progress)
        report = merge_report(merged, options, recipe, rows, curves(merged))
        _write_network(stage, merged.checkpoint(), report, pt)
        draw_curves(report, stage / "curves.png")
        write_bytes(stage / "recipe.json", (json.dumps(recipe, indent=1) + "\n").encode())
        write_bytes(stage / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    return folder, report, False


def _finished(folder: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return the report of a finished run of the same recipe, None where there is no run."""
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
