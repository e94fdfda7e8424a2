"""Runs of reconfigurations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from geomerge.expert import Expert
from geomerge.expert_options import ExpertOptions
from geomerge.io.files import sha256
from geomerge.io.run_files import last_configuration
from geomerge.loading import load_expert
from geomerge.monitor.progress import Progress
from geomerge.networks.hugging_face import load_network
from geomerge.options import recorded
from geomerge.pruning.options import ReconfigureOptions
from geomerge.pruning.plan import load_plan
from geomerge.pruning.reconfigure import reconfigure
from geomerge.pruning.results import PrunedExpert, pruned_expert
from geomerge.report.sparse import reconfigure_report
from geomerge.runs.command import command_line
from geomerge.runs.folder import RunFolder, data_of_recipe

__all__ = ["run_reconfigure"]


def run_reconfigure(
    source: str | Path,
    plan: str | Path,
    options: ReconfigureOptions,
    data: ExpertOptions | None = None,
    *,
    out: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Walk through the configurations of a plan and write the run.

    Args:
        source: File of a network, or folder of a finished run of ``sparsify`` or ``reconfigure``:
            the plan starts at its last network and restores units of its first.
        plan: YAML file of the plan.
        options: Options of the reconfiguration.
        data: Task and architecture of the network; None takes those that the file records.
        out: Folder of the run; None takes ``runs/NAME-PLAN-HASH``.
        progress: Function that is called after each point of a walk.

    Returns:
        Folder, its report, and whether the run was finished before, so that nothing was changed.

    Raises:
        GeomergeError: If inputs, options, plan or data cannot be used, or the folder holds another
            run.
    """
    source, plan, data = Path(source), Path(plan), data or ExpertOptions()
    command = command_line("reconfigure", [source], (data, options), plan=plan)
    steps = load_plan(plan)
    start = None
    if source.is_dir():
        first, last = _ends(source)
        checkpoint, start = load_network(first), load_network(last)
    else:
        checkpoint = load_network(source, data.reading.files)
    digests = {"network": checkpoint.digest, "plan": sha256(plan.read_bytes())}
    if start is not None:
        digests["start"] = start.digest
    recipe = {
        "reconfigure": {**recorded(data), **options.recorded()},
        "plan": json.loads(json.dumps([asdict(step) for step in steps])),  # tuples as lists
        "inputs": digests,
        **data_of_recipe([checkpoint], data),
    }
    run = RunFolder(out, f"{source.stem}-{plan.stem}", recipe, command)
    if run.before:
        return run.outcome
    dense = load_expert(checkpoint, data)
    begin: Expert | PrunedExpert = dense
    if start is not None:
        pruned = Expert.from_checkpoint(start, data.arch, device=data.device)
        begin = PrunedExpert(dense, pruned)
    with run.unfinished(data.device) as folder:
        result = reconfigure(
            begin, steps, options,
            folder=folder / "moves", work=folder / "work", progress=progress,
        )  # fmt: skip
        pruned_expert(result.problem, dense.weights).save(folder / "dense.safetensors")
        for configuration in result.configurations:
            configuration.expert.save(folder / f"{configuration.name}.safetensors")
        report = reconfigure_report(result, recipe).to_json()
        run.finish(folder, report, tasks={"network": dense.task})
    return run.outcome


def _ends(run: Path) -> tuple[Path, Path]:
    """Return the files of a run's first and last network."""
    if (run / "sparse.safetensors").is_file():
        return run / "path" / "start.safetensors", run / "sparse.safetensors"
    return run / "dense.safetensors", last_configuration(run)
