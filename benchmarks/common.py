"""What the benchmarks share: experts kept in a work folder, walks picked from by several rules."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from geomerge import Checkpoint, MergeOptions, load_checkpoint, load_task
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import parse_pick
from geomerge.io.files import write_bytes
from geomerge.merging.candidates import best_candidate, pick_candidates, walk_stage
from geomerge.merging.plan import plan_merge
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.walks import Walker
from geomerge.training import train_checkpoint

__all__ = ["RESULTS", "Rows", "about", "expert", "walked", "write_results"]

RESULTS = Path(__file__).parent / "results"


class Rows:
    """Measured rows of one case, each kept on disk as soon as it is known."""

    def __init__(self, file: Path, skip: Sequence[str] = ()) -> None:
        self._file, self._skip = file, skip
        self.done: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def row(self, name: str, make: Callable[[], Any]) -> None:
        """Measure a row once."""
        if name in self.done or name in self._skip:
            return
        self.done[name] = make()
        write_bytes(self._file, json.dumps(self.done, indent=1).encode())
        print(self._file.stem, name, self.done[name], flush=True)


def expert(work: Path, arch: str, task: str, seed: int, **training: Any) -> Checkpoint:
    """Train a network once and read it."""
    file = work / f"{arch.replace(':', '-')}-{seed}-{task}.pt"
    if not file.exists():
        train_checkpoint(file, arch, load_task(task), seed=seed, **training)
    return load_checkpoint(file)


def walked(
    networks: Sequence[Checkpoint], options: MergeOptions, rules: Sequence[str] = ("balanced",)
) -> dict[str, Any]:
    """Walk as ``geomerge merge`` does, without the legs that close the path.

    Returns:
        Test accuracies of the crossover by each rule, of every network, and how the walks went.
    """
    sides = prepare_sides(networks, options)
    plan = plan_merge(sides, options)
    experts = {s.name: accuracy(s.network, s.w, s.task.select) for s in sides}
    walker = Walker(sides, options)
    found: dict[str, Any] = {
        "experts": [accuracy(s.network, s.w, s.task.test) for s in sides],
        "preset": plan.preset,
    }
    if len(plan.stages) > 1:
        assert len(rules) == 1, "a later walk starts where a rule picked the one before"
    w = plan.begin(sides)
    for k, stage in enumerate(plan.stages):
        with TemporaryDirectory() as folder:
            walk = walk_stage(sides, plan, stage, w, walker, options, Path(folder) / str(k))
            for name in rules:
                rule = parse_pick(name, experts)
                chosen = best_candidate(pick_candidates(walk, rule), rule)
                w = sides.settled(chosen.leg.weights(chosen.step))
                found[name] = [accuracy(s.network, w, s.task.test) for s in sides]
                found["damping"] = [chosen.leg.steps[0].damping, chosen.leg.steps[-1].damping]
    return found


def about() -> dict[str, Any]:
    """Return the machine and the versions that results belong to."""
    return {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_results(name: str, content: dict[str, Any]) -> None:
    """Write a file of results."""
    write_bytes(RESULTS / name, (json.dumps({**about(), **content}, indent=1) + "\n").encode())
