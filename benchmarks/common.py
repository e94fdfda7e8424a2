"""Shared parts of the benchmarks: experts kept in a work folder, walks picked by several rules."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from geomerge import Checkpoint, MergeOptions, load_checkpoint, load_task
from geomerge.errors import Problems
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import parse_pick
from geomerge.expert_options import DataOptions
from geomerge.io.files import write_bytes
from geomerge.loading import load_experts
from geomerge.merging.choice import choose_preset
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.stages import walk_plan
from geomerge.training import train_checkpoint

__all__ = ["RESULTS", "Rows", "about", "expert", "prepared", "walked", "write_results"]

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


def prepared(
    networks: Sequence[Checkpoint], manifold: Sequence[str], **options: Any
) -> PreparedMerge:
    """Put networks into one weight space, with inputs as ``--manifold`` names them."""
    experts = load_experts(networks, DataOptions(manifold=tuple(manifold)))
    found = prepare(experts, MergeOptions(**options), Problems(strict=True))
    assert found is not None
    return found


def walked(
    networks: Sequence[Checkpoint],
    manifold: Sequence[str],
    rules: Sequence[str] = ("balanced",),
    **options: Any,
) -> dict[str, Any]:
    """Walk as ``geomerge merge`` does, without the legs that close the path.

    Args:
        networks: Networks.
        manifold: Tasks whose inputs the walk may use, as ``--manifold`` names them.
        rules: Pick rules.
        options: Options of the merge by name.

    Returns:
        Test accuracies of the crossover by each rule, of every network, and how the walks went.
    """
    preset = choose_preset(prepared(networks, manifold, **options))
    space = preset.space
    found: dict[str, Any] = {
        "experts": [expert.accuracy() for expert in space],
        "preset": preset.name,
    }
    # A later walk starts where a rule picked the one before.
    assert len(rules) == 1 or len(preset.stages) == 1
    own = {expert.name: expert.accuracy("select") for expert in space}
    parsed = [parse_pick(name, own) for name in rules]
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), Monitor(space), preset.prepared.points)
        for stage in walk_plan(preset, parsed[0], recorder):
            for rule in parsed:
                picked = stage if rule is parsed[0] else stage.walked.picked(rule)
                found[rule.name] = [accuracy(e.network, picked.w, e.task.test) for e in space]
                steps = picked.chosen.leg.steps
                found["damping"] = [steps[0].damping, steps[-1].damping]
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
