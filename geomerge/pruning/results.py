"""Experts and paths in results of pruning, and their files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from geomerge.expert import Expert
from geomerge.io.folders import staged_folder
from geomerge.io.precision import rounded, with_dtype
from geomerge.metrics.sketch import weights_digest
from geomerge.paths.path import WeightPath
from geomerge.processes import wait, writes
from geomerge.pruning.problem import PruneProblem
from geomerge.pruning.walk import START, PruneWalk

__all__ = ["PrunedExpert", "pruned_expert", "save_result", "store_walk"]

# Metadata that the sparse network shares with the dense one.
_KEPT = ("architecture", "config", "task", "normalisation", "tasks", "head", "training")


@dataclass(frozen=True)
class PrunedExpert:
    """A pruned network together with its dense original.

    Attributes:
        dense: Dense network.
        expert: Pruned network.
    """

    dense: Expert
    expert: Expert


def pruned_expert(
    problem: PruneProblem,
    w: Tensor,  # (n,)
) -> Expert:
    """Return a problem's network at other weights as an expert without a sketch.

    The weights are rounded as in its file, to the dtype of the options or of the network.
    """
    dtype = problem.options.dtype or problem.expert.meta.get("dtype")
    w = rounded(w, dtype)
    meta = {key: problem.expert.meta[key] for key in _KEPT if key in problem.expert.meta}
    if problem.expert.architecture is not None:
        meta["architecture"] = problem.expert.architecture
    if "tasks" not in meta:
        meta.setdefault("task", problem.task.name)
        meta.setdefault("normalisation", problem.task.normalisation.to_json())
    meta = with_dtype(meta, dtype)
    digest = weights_digest(problem.network, w)
    return replace(problem.expert, weights=w, meta=meta, sketch=None, digest=digest)


def store_walk(
    problem: PruneProblem,
    walk: PruneWalk,
    folder: Path,
    start: Tensor,  # (n,)
    points: int,
) -> WeightPath:
    """Store a walk as a path from its start (t = 0) to its end.

    Args:
        problem: Network.
        walk: Finished walk.
        folder: Folder of the path; files of an interrupted call in it are removed.
        start: First weights of the walk.
        points: Largest number of stored networks.
    """
    WeightPath.clear(folder)
    if writes():
        folder.mkdir(parents=True, exist_ok=True)
    leg = walk.leg.copied(folder)
    first, last = (pruned_expert(problem, w) for w in (start, walk.weights))
    ends = (START, first.checkpoint), ("end", last.checkpoint)
    crossover = leg, leg.marks[-1][0]
    WeightPath.write(folder, *ends, [leg], crossover, points, last.checkpoint.meta)
    wait()
    weights = {START: first.weights, "end": last.weights}
    return WeightPath(folder, network=problem.network, ends=weights)


def save_result(
    folder: str | Path, experts: Mapping[str, Expert], paths: Mapping[str, WeightPath]
) -> None:
    """Write experts and paths into a folder atomically.

    Args:
        folder: New or empty folder.
        experts: Networks by name of the file, without suffix.
        paths: Paths by name of their folder.

    Raises:
        RunError: If the folder has content or cannot be written.
    """
    with staged_folder(Path(folder)) as stage:
        for name, expert in experts.items():
            expert.save(stage / f"{name}.safetensors")
        for name, path in paths.items():
            shutil.copytree(path.folder, stage / name)
