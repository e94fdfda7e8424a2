"""Streams of MNIST at the default memory of 5 MB: accuracy, bytes, and time as tasks come.

    python benchmarks/stream_memory.py --work build/bench

geomerge's own row only, with the settings that benchmarks/continual.py chose for it on selection
splits, and joint training where --joint is given; numbers are of the test splits. Finished rows are
kept in --work, and the table is written after each: rows that are missing in it were not measured.
Rotations are in equal steps from no turn to half a turn; 100 permuted tasks have 500 examples of
each class and are learned within a constant 5 MB.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, Rows, write_results
from continual import STREAMS, Case
from continual import summary as row_of

from geomerge.strategies import StreamOptions

SETTINGS: dict[str, dict[str, Any]] = {
    "permuted 10": {"damping": 0.01},  # of 0.01, 0.03, 0.1 and 0.3, by selection splits
    # At the rate 0.1 that was chosen there training diverges in the second task with seed 0.
    "split domain": {"learning_rate": 0.05, "damping": 0.03},
    "split class": {},
    "mnist fashion": {},
    "permuted 20": {"learning_rate": 0.1, "damping": 0.03, "memory_mb": 8.0},
    "rotated 20": {"learning_rate": 0.1, "damping": 0.03},
    # Of 0.1 and 0.3 the better one on selection splits of the first 60.
    "permuted 100": {"learning_rate": 0.1, "damping": 0.1, "memory_mb": 5.0},
}
STREAMS |= {
    "rotated 20": StreamOptions("rotated-mnist", experiences=20, epochs=1, labels=True),
    "permuted 100": StreamOptions(
        "permuted-mnist", experiences=100, epochs=1, labels=True, per_class=500
    ),
}
_TENTH = 9  # merge, from 0 on, that the time of the last one is compared with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--streams", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--joint", action="store_true", help="joint training beside it")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for name in given.streams:
        rows = Rows(given.work / f"stream-memory-{name.replace(' ', '-')}.json")
        for seed in given.seeds:
            case = Case(name, seed, given.work)
            rows.row(str(seed), partial(case.learn, "geodesic", **SETTINGS[name]))
            if given.joint:
                rate = {k: v for k, v in SETTINGS[name].items() if k == "learning_rate"}
                rows.row(f"joint {seed}", partial(case.learn, "joint", **rate))
            stored = RESULTS / "stream_memory.json"
            table = json.loads(stored.read_text())["table"] if stored.exists() else {}
            if (found := summary(name, rows.done)) is not None:
                write_results("stream_memory.json", {"table": {**table, name: found}})


def summary(name: str, done: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of the seeds that did not diverge; None where there is none."""
    own = [row for key, row in done.items() if key.isdigit()]
    found = [row for row in own if "diverged" not in row]
    if not found:
        return None
    joint = [row["accuracy"] for key, row in done.items() if key.startswith("joint")]
    times = [row["merge seconds"] for row in found if "merge seconds" in row]
    return {
        **row_of(own, SETTINGS[name]),
        "megabytes": max(row["kept"]["megabytes"] for row in found),
        "last merge by tenth": statistics.mean(map(growth, times))
        if times and all(len(t) > _TENTH + 1 for t in times)
        else None,
        "joint": statistics.mean(joint) if joint else None,
    }


def growth(times: list[float]) -> float:
    """Return the time of the last merges by that of the tenth, medians of five each."""
    return statistics.median(times[-5:]) / statistics.median(times[_TENTH - 2 : _TENTH + 3])


if __name__ == "__main__":
    main()
