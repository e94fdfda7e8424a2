"""Experts and paths that pruning returns, in memory and in files."""

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

# Metadata of the dense network that holds for the sparse one, too.
_KEPT = ("architecture", "config", "task", "normalisation", "tasks", "head", "training")


@dataclass(frozen=True)
class PrunedExpert:
    """A pruned network together with the dense network that it came from.

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
    """Return the network of a problem at other weights as an expert without a sketch.

    The weights are those that its file will hold, in the type of the options or of the network.
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
    """Store a walk as a path from its start, at t = 0, to its end.

    Args:
        problem: Network.
        walk: Finished walk.
        folder: Folder of the path; files of an interrupted call are removed.
        start: First weights of the walk.
        points: Largest number of stored networks.
    """
    WeightPath.clear(folder)
    if writes():
        folder.mkdir(parents=True, exist_ok=True)
    leg = walk.leg.copied(folder)
    first, last = (pruned_expert(problem, w).checkpoint for w in (start, walk.weights))
    arrived = leg.marks[-1][0]
    WeightPath.write(
        folder, (START, first), ("end", last), [leg], (leg, arrived), points, last.meta
    )
    wait()
    return WeightPath(folder, problem.network.device, problem.expert.module)


def save_result(
    folder: str | Path, experts: Mapping[str, Expert], paths: Mapping[str, WeightPath]
) -> None:
    """Write experts and paths into a folder, whole or not at all.

    Args:
        folder: New or empty folder.
        experts: Networks by the name of their file, without its suffix.
        paths: Paths by the name of their folder.

    Raises:
        RunError: If the folder has content or cannot be written.
    """
    with staged_folder(Path(folder)) as stage:
        for name, expert in experts.items():
            expert.save(stage / f"{name}.safetensors")
        for name, path in paths.items():
            shutil.copytree(path.folder, stage / name)
