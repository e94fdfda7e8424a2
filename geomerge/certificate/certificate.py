"""A merge -> its certificate: enough to say later whether what its report claims still holds."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from geomerge.certificate.evidence import (
    bracket,
    counted,
    data_digests,
    function_change,
    leg_changes,
    step_identities,
)
from geomerge.data.task import SELECTION_SEED
from geomerge.errors import NumericalError
from geomerge.io.checkpoint import Checkpoint, load_checkpoint
from geomerge.io.files import sha256
from geomerge.merging import Merge, MergeOptions
from geomerge.merging.sides import Side, Sides
from geomerge.report.content import EXAMPLES

__all__ = ["MERGED", "certificate", "environment", "report_digest", "same_network"]

MERGED = "merged.safetensors is the path at the crossover"
_FOLDERS = ("path", EXAMPLES)
_NOT_STATED = ("report.html", "report.json")  # they hold the certificate itself


def certificate(
    folder: Path, merged: Merge, options: MergeOptions, report: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what ``report.json`` holds under ``certificate``.

    Args:
        folder: The run's folder, in which all but the report is written.
        merged: The merge.
        options: Its options.
        report: The rest of the report.

    Raises:
        NumericalError: If something does not hold that must hold to the bit.
    """
    sides, path = merged.sides, merged.path
    identity = _identities(load_checkpoint(folder / "merged.safetensors"), merged, options)
    for test, holds in identity.items():
        if not holds:
            raise NumericalError(
                f"expected to the bit that {test}, and on {sides.network.device} it is not so; "
                "look for what the network computes differently twice, or use --device cpu"
            )
    step = report["crossover"]["step"] if merged.plan.preset == "paper" else None
    found: dict[str, Any] = {
        "files": {name: sha256((folder / name).read_bytes()) for name in _stored(folder)},
        "inputs": report["recipe"]["inputs"],
        "sketches": {k: Path(file).name for k, file in options.by_network("sketch").items()},
        "data": {s.name: data_digests(s.task, s.manifold, s.manifold_name) for s in sides},
        "recipe": report["recipe"],
        "seeds": _seeds(sides, options),
        "environment": environment(sides.network.device),
        "crossover": merged.t,
        "bracket": bracket(
            path, {s.name: (s.network, s.task.select) for s in sides if s.task is not None}
        ),
        "accuracies": _accuracies(sides, report),
        "drift": {
            "legs": leg_changes(path, step),
            "networks": {s.name: _drift(merged, s, options.output) for s in sides},
        },
        "programs": _programs(merged),
        "identity": identity,
    }
    return {**found, "report_sha256": report_digest({**report, "certificate": found})}


def report_digest(report: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a report, the certificate's own ``report_sha256`` left out."""
    rest = {k: v for k, v in report["certificate"].items() if k != "report_sha256"}
    # Unlike a recipe a report may hold numbers that are not finite.
    text = json.dumps({**report, "certificate": rest}, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode())


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, platform, device and threads: what may change a last digit."""
    packages = ("geomerge", "torch", "numpy", "qpth")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def same_network(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether two checkpoints hold the same weights and buffers, bit for bit."""
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(value, other.weights[name]) for name, value in one.weights.items()
    )


def _stored(folder: Path) -> list[str]:
    """Return the names of all files of a run but its report, as seen from its folder."""
    files = [file for file in folder.iterdir() if file.name not in _NOT_STATED]
    for inside in _FOLDERS:
        files += (folder / inside).glob("*")
    return sorted(file.relative_to(folder).as_posix() for file in files if file.is_file())


def _identities(stored: Checkpoint, merged: Merge, options: MergeOptions) -> dict[str, bool]:
    sides, path = merged.sides, merged.path
    first, last = sides.all[0], sides.all[-1]
    side = next(s for s in sides if s.manifold is not None)  # no merge goes without any
    assert side.manifold is not None
    return {
        f"the path starts at {first.name}": torch.equal(path.at(0), first.w),
        f"the path ends at {last.name}": torch.equal(path.at(1), last.w),
        MERGED: same_network(stored, path.checkpoint(merged.t)),
        **step_identities(
            side.network, side.w, side.manifold, options.metric, options.output, options.seed
        ),
    }


def _seeds(sides: Sides, options: MergeOptions) -> dict[str, Any]:
    return {
        "merge": options.seed,
        "selection": SELECTION_SEED,
        "training": {s.name: s.checkpoint.meta.get("training", {}).get("seed") for s in sides},
    }


def _accuracies(sides: Sides, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts behind the shares that the report's table has already."""
    sizes = {
        s.name: {"select": len(s.task.select.labels), "test": len(s.task.test.labels)}
        for s in sides
        if s.task is not None
    }
    rows = [row for row in report["results"] if row["name"] in {s.name for s in sides}]
    rows.append(next(row for row in report["results"] if row["name"] == "crossover"))
    return {
        row["name"]: {
            split: {
                name: counted(round(row[split][name] * size[split]), size[split])
                for name, size in sizes.items()
            }
            for split in ("select", "test")
        }
        for row in rows
    }


def _drift(merged: Merge, side: Side, output: str) -> dict[str, float | None]:
    """Return how far the crossover's function is from a network's."""
    gap = merged.w - side.w
    predicted = side.sketch.metric.inner(gap, gap) if side.sketch is not None else None
    measured = function_change(side.network, side.w, merged.w, side.task, side.manifold, output)
    return {"predicted": predicted, **measured}


def _programs(merged: Merge) -> dict[str, Any]:
    """Return how many quadratic programs were solved, and by how much conditions fail at most."""
    budgets = [c.budgets for stage in merged.stages for c in stage if c.budgets is not None]
    solved = sum(b.solved for b in budgets)
    return {"solved": solved, "largest_residual": max((b.residual for b in budgets), default=0.0)}
