"""One reconfiguration on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from geomerge.io.checkpoint import load_checkpoint, save_checkpoint
from geomerge.io.files import sha256
from geomerge.io.folders import resumable_folder
from geomerge.monitor.progress import Progress
from geomerge.pretrained import last_configuration
from geomerge.pruning.options import SparsifyOptions
from geomerge.pruning.plan import load_plan
from geomerge.pruning.reconfigure import reconfigure
from geomerge.pruning.sparsify import sparse_checkpoint
from geomerge.report.card import write_reconfigure_card
from geomerge.report.sparse import reconfigure_report
from geomerge.report.sparse_curves import draw_moves
from geomerge.runs.folder import command_line, finished, folder_of, unfinished, write_json
from geomerge.runs.page import write_report

__all__ = ["run_reconfigure"]


def run_reconfigure(
    source: str | Path,
    plan: str | Path,
    options: SparsifyOptions,
    *,
    out: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Walk through the configurations of a plan and write the run.

    Args:
        source: A network's file, or the folder of a finished run of ``sparsify`` or
            ``reconfigure``: its last network is where the plan starts, and units come back as they
            were in its first.
        plan: The plan, a YAML file.
        options: How.
        out: The run's folder; default ``runs/NAME-HASH``.
        on_progress: Called after each point of a walk.

    Returns:
        The folder, its report, and whether it had been finished before (nothing was changed).

    Raises:
        GeomergeError: If inputs, options, plan or data are wrong, or the folder holds another run.
    """
    source, plan = Path(source), Path(plan)
    command = command_line("reconfigure", [source], options, plan=plan)
    steps = load_plan(plan)
    start = None
    if source.is_dir():
        dense, last = _ends(source)
        checkpoint, start = load_checkpoint(dense), load_checkpoint(last)
    else:
        checkpoint = load_checkpoint(source)
    digests = {"network": checkpoint.digest, "plan": sha256(plan.read_bytes())}
    if start is not None:
        digests["start"] = start.digest
    recipe = {
        "reconfigure": options.recipe({})["sparsify"],
        "plan": json.loads(json.dumps([asdict(step) for step in steps])),  # tuples as lists
        "inputs": digests,
    }
    folder = folder_of(out, f"{source.stem}-{plan.stem}", recipe)
    before = finished(folder, recipe)
    if before is not None:
        return folder, before, True
    with resumable_folder(folder, unfinished(recipe, options.device)) as stage:
        subject, reached = reconfigure(
            checkpoint, steps, options, stage / "moves", start, on_progress, stage / "work"
        )
        report = reconfigure_report(subject, reached, recipe)
        report["command"] = command
        save_checkpoint(stage / "dense.safetensors", sparse_checkpoint(subject, subject.w))
        for one in reached:
            network = sparse_checkpoint(subject, one.walked.weights)
            save_checkpoint(stage / f"{one.name}.safetensors", network)
        draw_moves(report, stage / "curves.png")
        write_reconfigure_card(stage, report, command, subject.task)
        write_json(stage / "recipe.json", recipe)
        write_report(stage, report)
    return folder, report, False


def _ends(run: Path) -> tuple[Path, Path]:
    """Return the files of a run's first and last network."""
    if (run / "sparse.safetensors").is_file():
        return run / "path" / "start.safetensors", run / "sparse.safetensors"
    return run / "dense.safetensors", last_configuration(run)
