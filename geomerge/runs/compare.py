"""Runs of comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.comparison import CompareOptions, Comparison, MethodRow, compare
from geomerge.expert_options import DataOptions
from geomerge.loading import load_base, load_experts
from geomerge.monitor.progress import Progress
from geomerge.networks.hugging_face import load_network
from geomerge.options import recorded
from geomerge.runs.command import command_line
from geomerge.runs.folder import RunFolder, data_of_recipe, input_digests

__all__ = ["run_compare"]


def run_compare(
    files: Sequence[str | Path],
    options: CompareOptions | None = None,
    data: DataOptions | None = None,
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Compare methods on two files and write the run: recipe, report, table, picture.

    Args:
        files: Files of network a and network b.
        options: Methods and the samples that they may use.
        data: Tasks, inputs, sketches and architecture of the networks.
        base: File of their common ancestor, if there is one.
        out: Folder of the run; default ``runs/compare-A-B-HASH`` of their names.
        progress: Function called with the progress.

    Returns:
        The folder, its report, and whether it had been finished before (nothing was changed).

    Raises:
        GeomergeError: If inputs, options or data are wrong, or the folder holds another run.
    """
    options, data = options or CompareOptions(), data or DataOptions()
    networks = [load_network(file, data.reading.files) for file in files]
    ancestor = load_base(base, networks, data)
    digests = input_digests(networks, data, ancestor)
    recipe = {
        "compare": {**options.recorded(), **recorded(data, "sketch")},
        "inputs": digests,
        **data_of_recipe(networks, data),
    }
    stem = "-".join(["compare", *(Path(file).stem for file in files)])
    command = command_line("compare", files, (data, options), base=base and Path(base))
    run = RunFolder(out, stem, recipe, command)
    if not run.before:
        with run.unfinished(data.device) as folder:
            experts = load_experts(networks, data, output=options.merge.measure.output)
            work = folder / "work"
            found = compare(experts, options, base=ancestor, work=work, progress=progress)
            run.finish(folder, _report(found, recipe))
    return run.outcome


def _report(found: Comparison, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``report.json``."""
    return {
        "geomerge": geomerge.__version__,
        "torch": torch.__version__,
        "recipe": recipe,
        "head": found.space.head,
        "bn": found.space.bn,
        "pick": found.rule.name,
        "budget": found.max_samples,
        "networks": {
            e.name: {
                "file": Path(e.source).name,
                "sha256": e.digest,
                "architecture": e.architecture,
                "task": e.task.name if e.task else None,
                "measure": found.measure(e.name),
                "manifold": e.inputs.name if e.inputs else None,
                "expert_test": found.experts[e.name],
                "expert_select": found.experts_select[e.name],
            }
            for e in found.space
        },
        "rows": [_row(row, found) for row in found.rows],
        "notes": found.notes,
    }


def _row(row: MethodRow, comparison: Comparison) -> dict[str, Any]:
    known = {
        "name": row.method.name,
        "group": row.method.group,
        "about": row.method.about,
        "reason": row.reason,
        "seconds": row.seconds,
    }
    if row.result is None:
        return known
    return {
        **known,
        "select": row.select,
        "test": row.test,
        "smallest": min(row.test.values()),
        "worst_drop": comparison.worst_drop(row),
        "data": {
            "inputs": list(row.result.inputs),
            "labels": list(row.result.labels),
            "sketches": list(row.result.sketches),
        },
        "samples": row.result.samples,
        "chosen": dict(row.result.chosen),
        "curve": row.curve,
    }
