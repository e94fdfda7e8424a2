"""Pairs of tasks in one network under the three head protocols.

    python benchmarks/heads.py --work build/bench

Every point is picked on the selection splits (balanced: smallest worst drop below the experts),
every number is measured on the test splits, with the protocol's own outputs: all of them where the
task is not known. "distillation" is the joint walk in the Euclidean metric from the same start,
with as many samples as the joint walk and its metric take together.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from common import Rows, expert, walked, write_results

PAIRS = (
    ("mnist", "fashion-mnist"),
    ("mnist@0-4", "mnist@5-9"),
)
HEADS = ("shared", "offset", "separate")
STEPS = 240
MORE = 24  # steps that take as many samples as the three measurements of the metric


def measure(rows: Rows, pair: tuple[str, str], seed: int, work: Path, arch: str) -> None:
    networks = [expert(work, arch, task, seed + 1000 * k, epochs=8) for k, task in enumerate(pair)]
    for head in HEADS:
        both = [f"{s}={t}" for s, t in zip("ab", pair, strict=True)]
        plain = {"metric": "euclidean", "steps": STEPS + MORE}
        for name, manifold, options in (
            ("joint", both, {"steps": STEPS}),
            ("sketch", both[:1], {"steps": STEPS}),
            ("distillation", both, plain),
        ):
            rows.row(
                f"{head}, {name}",
                partial(walked, networks, manifold, head=head, **options),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--arch", default="mlp")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="how many of the pairs")
    given = parser.parse_args()
    pairs = PAIRS[: given.pairs]
    given.work.mkdir(parents=True, exist_ok=True)
    files = {
        (pair, seed): Rows(given.work / f"heads-{given.arch}-{'-'.join(pair)}-{seed}.json")
        for seed in given.seeds
        for pair in pairs
    }
    for (pair, seed), rows in files.items():
        measure(rows, pair, seed, given.work, given.arch)
    table: dict[str, Any] = {}
    for pair in pairs:
        title = " + ".join(pair)
        cases = [files[pair, seed].done for seed in given.seeds]
        table[title] = {}
        for name in cases[0]:
            tests = [[100 * v for v in case[name]["balanced"]] for case in cases]
            experts = [[100 * v for v in case[name]["experts"]] for case in cases]
            drops = [max(e - t for e, t in zip(*both, strict=True))
                     for both in zip(experts, tests, strict=True)]  # fmt: skip
            means = [statistics.mean(v) for v in zip(*tests, strict=True)]
            table[title][name] = {
                "mean": means,
                "experts": [statistics.mean(v) for v in zip(*experts, strict=True)],
                "worst_drop": statistics.mean(drops),
                "seeds": tests,
            }
            print(f"{title:<40} {name:<24} {means[0]:6.2f} {means[1]:6.2f}  "
                  f"worst drop {statistics.mean(drops):5.2f}")  # fmt: skip
    write_results("heads.json", {"arch": given.arch, "seeds": given.seeds, "table": table})


if __name__ == "__main__":
    main()
