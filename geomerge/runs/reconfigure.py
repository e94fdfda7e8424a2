"""One reconfiguration on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from geomerge.io.checkpoint import load_checkpoint, save_checkpoint
from geomerge.io.files import sha256
from geomerge.monitor.progress import Progress
from geomerge.pretrained import last_configuration
from geomerge.pruning.options import SparsifyOptions
from geomerge.pruning.plan import load_plan
from geomerge.pruning.reconfigure import reconfigure
from geomerge.pruning.sparsify import sparse_checkpoint
from geomerge.report.sparse import reconfigure_report
from geomerge.runs.command import command_line
from geomerge.runs.folder import RunFolder

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
    run = RunFolder(out, f"{source.stem}-{plan.stem}", recipe, command)
    if not run.before:
        with run.unfinished(options.device) as folder:
            subject, reached = reconfigure(
                checkpoint, steps, options, folder / "moves", start, on_progress, folder / "work"
            )
            save_checkpoint(folder / "dense.safetensors", sparse_checkpoint(subject, subject.w))
            for configuration in reached:
                network = sparse_checkpoint(subject, configuration.walked.weights)
                save_checkpoint(folder / f"{configuration.name}.safetensors", network)
            report = reconfigure_report(subject, reached, recipe)
            run.finish(folder, report, tasks={"network": subject.task})
    return run.outcome


def _ends(run: Path) -> tuple[Path, Path]:
    """Return the files of a run's first and last network."""
    if (run / "sparse.safetensors").is_file():
        return run / "path" / "start.safetensors", run / "sparse.safetensors"
    return run / "dense.safetensors", last_configuration(run)
