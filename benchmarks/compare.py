"""Every method of ``geomerge compare`` on MNIST and Fashion-MNIST, one 10-way head, three seeds.

    python benchmarks/compare.py --work build/bench

Points and strengths are picked on the selection splits (balanced), numbers are measured on the test
splits. Finished rows are kept in --work: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from common import Rows, expert, write_results

from geomerge import MergeOptions
from geomerge.comparison import METHODS, CompareOptions, compare
from geomerge.expert_options import DataOptions
from geomerge.loading import load_experts

TASKS = ("mnist", "fashion-mnist")
SEEDS = (0, 1, 2)


def row(work: Path, seed: int, name: str) -> dict[str, Any]:
    networks = [expert(work, "mlp", t, seed + 1000 * k, epochs=8) for k, t in enumerate(TASKS)]
    experts = load_experts(networks, DataOptions(manifold=TASKS))
    found = compare(experts, CompareOptions(MergeOptions(seed=seed), only=(name,)))
    (made,) = found.rows
    if made.result is None:
        return {"reason": made.reason}
    return {
        "test": {side: 100 * value for side, value in made.test.items()},
        "drop": 100 * max(found.experts[side] - value for side, value in made.test.items()),
        "inputs": list(made.result.inputs),
        "labels": list(made.result.labels),
        "sketches": list(made.result.sketches),
        "samples": made.result.samples,
        "seconds": made.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    cases = [Rows(arguments.work / f"compare-{seed}.json") for seed in SEEDS]
    table = {}
    for name in METHODS:
        for seed, case in zip(SEEDS, cases, strict=True):
            case.row(name, partial(row, arguments.work, seed, name))
        found = [case.done[name] for case in cases]
        if "reason" in found[0]:
            table[name] = {"reason": found[0]["reason"]}
            continue
        table[name] = {
            "test": {s: statistics.mean(f["test"][s] for f in found) for s in found[0]["test"]},
            "drop": statistics.mean(f["drop"] for f in found),
            "samples": statistics.mean(f["samples"] for f in found),
            "seconds": statistics.mean(f["seconds"] for f in found),
            **{key: found[0][key] for key in ("inputs", "labels", "sketches")},
        }
    write_results("compare.json", {"tasks": TASKS, "seeds": SEEDS, "table": table})


if __name__ == "__main__":
    main()
