"""One comparison on disk: two networks in, a finished run folder out, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.comparison import CompareOptions, Comparison, MethodRow, compare
from geomerge.io.checkpoint import load_checkpoint
from geomerge.monitor.progress import Progress
from geomerge.runs.command import command_line
from geomerge.runs.folder import RunFolder, input_digests

__all__ = ["run_compare"]


def run_compare(
    files: Sequence[str | Path],
    options: CompareOptions,
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Compare methods on two files and write the run: recipe, report, table, picture.

    Args:
        files: Files of network a and network b.
        options: Which methods, and what they may use.
        base: File of their common ancestor, if there is one.
        out: The run's folder; default ``runs/compare-A-B-HASH`` of their names.
        on_progress: Told how it goes.

    Returns:
        The folder, its report, and whether it had been finished before (nothing was changed).

    Raises:
        GeomergeError: If inputs, options or data are wrong, or the folder holds another run.
    """
    command = command_line("compare", files, options, base=base and Path(base))
    networks = [load_checkpoint(file) for file in files]
    ancestor = None if base is None else load_checkpoint(base)
    digests = input_digests(networks, options.merge)
    if ancestor is not None:
        digests["base"] = ancestor.digest
    recipe = options.recipe(digests)
    stem = "-".join(["compare", *(Path(file).stem for file in files)])
    run = RunFolder(out, stem, recipe, command)
    if not run.before:
        with run.unfinished(options.merge.device) as folder:
            found = compare(
                networks, options, base=ancestor, on_progress=on_progress, work=folder / "work"
            )
            run.finish(folder, _report(found, recipe))
    return run.outcome


def _report(found: Comparison, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what ``report.json`` holds."""
    return {
        "geomerge": geomerge.__version__,
        "torch": torch.__version__,
        "recipe": recipe,
        "head": found.sides.head,
        "bn": found.sides.bn,
        "pick": found.rule.name,
        "budget": found.max_samples,
        "networks": {
            s.name: {
                "file": Path(s.checkpoint.source).name,
                "sha256": s.checkpoint.digest,
                "architecture": s.checkpoint.meta.get("architecture"),
                "task": s.task.name if s.task else None,
                "manifold": s.manifold_name,
                "expert_test": found.experts[s.name],
                "expert_select": found.experts_select[s.name],
            }
            for s in found.sides
        },
        "rows": [_row(row, found) for row in found.rows],
        "notes": found.sides.notes,
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
