"""One comparison on disk: two networks in, a finished run folder out, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.comparison import CompareOptions, Comparison, MethodRow, compare
from geomerge.io.checkpoint import load_checkpoint
from geomerge.io.files import write_bytes
from geomerge.io.folders import resumable_folder
from geomerge.monitor.progress import Progress
from geomerge.report.compare import DATA_MEANING, compare_table, draw_compare
from geomerge.runs.folder import (
    command_line,
    finished,
    folder_of,
    input_digests,
    unfinished,
    write_json,
)
from geomerge.runs.page import write_report

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
    stems = "-".join(["compare", *(Path(file).stem for file in files)])
    folder = folder_of(out, stems, recipe)
    before = finished(folder, recipe)
    if before is not None:
        return folder, before, True
    with resumable_folder(folder, unfinished(recipe, options.merge.device)) as stage:
        found = compare(
            networks, options, base=ancestor, on_progress=on_progress, work=stage / "work"
        )
        report = _report(found, recipe)
        report["command"] = command
        draw_compare(report, stage / "compare.png")
        write_bytes(stage / "table.md", _markdown(report).encode())
        write_json(stage / "recipe.json", recipe)
        write_report(stage, report)
    return folder, report, False


def _report(found: Comparison, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what ``report.json`` holds."""
    return {
        "geomerge": geomerge.__version__,
        "torch": torch.__version__,
        "recipe": recipe,
        "head": found.sides.head,
        "bn": found.sides.bn,
        "pick": found.rule.name,
        "budget": found.budget,
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
    if row.found is None:
        return known
    return {
        **known,
        "select": row.select,
        "test": row.test,
        "smallest": min(row.test.values()),
        "worst_drop": comparison.worst_drop(row),
        "data": {
            "inputs": list(row.found.inputs),
            "labels": list(row.found.labels),
            "sketches": list(row.found.sketches),
        },
        "samples": row.found.samples,
        "chosen": dict(row.found.chosen),
        "curve": row.curve,
    }


def _markdown(report: dict[str, Any]) -> str:
    headings, rows = compare_table(report)
    a, b = (report["networks"][side] for side in "ab")
    lines = [
        f"# {a['file']} ({a['task']}) and {b['file']} ({b['task']}), {report['head']} head",
        "",
        _line(headings),
        _line(["---", *["---:"] * (len(headings) - 1)]),
        *map(_line, rows),
        "",
        f"Accuracies in percent. Points were picked by {report['pick']} on the selection splits, "
        f"trained rows had {report['budget']:,} samples. {DATA_MEANING[0].upper()}"
        f"{DATA_MEANING[1:]}.",
        "",
        *[f"- {row['name']}: {row['about']}" for row in report["rows"] if row["reason"] is None],
        *[f"- {row['name']}: {row['reason']}" for row in report["rows"] if row["reason"]],
        *[f"- note: {note}" for note in report["notes"]],
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
