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
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.presets.base import choose_preset
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.stages import walk_plan
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
    preset = choose_preset(sides, options)
    experts = {s.name: accuracy(s.network, s.w, s.task.select) for s in sides}
    found: dict[str, Any] = {
        "experts": [accuracy(s.network, s.w, s.task.test) for s in sides],
        "preset": preset.name,
    }
    # A later walk starts where a rule picked the one before.
    assert len(rules) == 1 or len(preset.stages) == 1
    parsed = [parse_pick(name, experts) for name in rules]
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), Monitor(sides), options.points)
        for stage in walk_plan(preset, parsed[0], recorder):
            for rule in parsed:
                picked = stage if rule is parsed[0] else stage.walked.picked(rule)
                found[rule.name] = [accuracy(s.network, picked.w, s.task.test) for s in sides]
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
