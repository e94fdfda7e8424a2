"""MNIST and Fashion-MNIST in one network, with the weights alone of one of the two.

    python benchmarks/surrogate.py --work build/bench

The metric of the unknown network is measured on surrogate inputs. Points are picked on the
selection splits (max-min, balanced), or with nothing of the unknown network to pick by (equal
drift, on the surrogates); numbers are measured on the test splits. *Other way round* has the inputs
of Fashion-MNIST and the weights of the MNIST network.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import RESULTS, Rows, expert, prepared, write_results

from geomerge import Checkpoint
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import parse_pick
from geomerge.merging.choice import choose_preset
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.stages import WalkedStage, walk_stage

TASKS = ("mnist", "fashion-mnist")
RULES = ("max-min", "balanced")
SWAPPED = ("mlp",)  # networks that are merged the other way round too
UNKNOWN = "equal-drift, nothing of b to pick by"


def measure(rows: Rows, arch: str, seed: int, work: Path) -> None:
    """Walk with the inputs of one task, then of the other."""
    networks = [expert(work, arch, t, seed + 1000 * k, epochs=8) for k, t in enumerate(TASKS)]
    rows.row("surrogate", lambda: picks(networks, TASKS[0]))
    if arch in SWAPPED:
        rows.row("other way round", lambda: picks(networks[::-1], TASKS[1]))


def picks(networks: Sequence[Checkpoint], task: str) -> dict[str, Any]:
    """Return test accuracies of the crossover by every rule, the network with inputs first.

    Args:
        networks: Networks a, with inputs, and b, without.
        task: Task of a.
    """
    preset = choose_preset(prepared(networks, (f"a={task}",), preset="surrogate"))
    space = preset.space
    own = {e.name: e.accuracy("select") for e in space}
    found: dict[str, Any] = {"experts": [e.accuracy() for e in space]}
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), Monitor(space), preset.options.machine.points)
        walked = walk_stage(preset, preset.stages[0], next(preset.starts()).weights, recorder)
        chosen = {name: walked.picked(parse_pick(name, own)) for name in RULES}
        chosen[UNKNOWN] = without_task(walked).picked(parse_pick("equal-drift", {}))
        for name, picked in chosen.items():
            found[name] = [accuracy(e.network, picked.w, e.task.test) for e in space if e.task]
            found[f"{name}: damping, step"] = [picked.chosen.damping, picked.chosen.step]
    return found


def without_task(walked: WalkedStage) -> WalkedStage:
    """Return the walks as they are scored without labels and inputs of the unknown network."""
    own = walked.stage.kept[0]
    return replace(walked, stage=replace(walked.stage, kept=(replace(own, task=None),)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--arch", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {}
    for arch in given.arch:
        cases = []
        for seed in given.seeds:
            rows = Rows(given.work / f"surrogate-{arch}-{seed}.json")
            measure(rows, arch, seed, given.work)
            cases.append(rows.done)
        table[arch] = summary(cases)
    # Networks that were not measured this time keep the rows that they have.
    before = RESULTS / "surrogate.json"
    known = json.loads(before.read_text())["table"] if before.exists() else {}
    write_results("surrogate.json", {"tasks": TASKS, "table": {**known, **table}})


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds, in percent, by row and rule, and the least of all seeds."""
    found: dict[str, Any] = {}
    for title in cases[0]:
        for rule in (*RULES, UNKNOWN):
            if rule not in cases[0][title]:
                continue
            seeds = [[100 * v for v in case[title][rule]] for case in cases]
            mean = [statistics.mean(v) for v in zip(*seeds, strict=True)]
            least = min(min(v) for v in seeds)
            found[f"{title}, {rule}"] = {"mean": mean, "least": least, "seeds": seeds}
            print(f"{title:<16} {rule:<38}", *(f"{v:6.2f}" for v in mean), f"  least {least:6.2f}")
    return found


if __name__ == "__main__":
    main()
