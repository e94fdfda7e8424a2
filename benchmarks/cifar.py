"""CIFAR-10 in halves of 5 classes, one network each: ResNet-18 with BatchNorm and with GroupNorm
and a small vision transformer, briefly trained, merged into one with two heads.

    python benchmarks/cifar.py --work build/bench

Points are picked on the selection splits (balanced), numbers are measured on the test splits.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common import Rows, expert, walked, write_results

sys.path.insert(0, str(Path(__file__).parent))  # for nets:...
PAIR = ("cifar10@0-4", "cifar10@5-9")
NETS = {"nets:resnet18_bn": 3, "nets:resnet18_gn": 3, "vit-cifar": 1}  # epochs
RATES = {"nets:resnet18_bn": 0.05, "nets:resnet18_gn": 0.01, "vit-cifar": 0.02}
STEPS = 40


SETTINGS: dict[str, dict[str, Any]] = {
    "sketch": {"preset": "sketch", "damping": 3e-5},
    "distillation": {"metric": "euclidean"},
    "joint": {},
}


def measure(rows: Rows, arch: str, work: Path, name: str) -> None:
    networks = [
        expert(
            work, arch, task, 1000 * k, epochs=NETS[arch], learning_rate=RATES[arch], sketch=False
        )
        for k, task in enumerate(PAIR)
    ]
    both = tuple(f"{s}={t}" for s, t in zip("ab", PAIR, strict=True))

    def timed() -> dict[str, Any]:
        start = time.perf_counter()
        found = walked(networks, both, steps=STEPS, head="separate", **SETTINGS[name])
        return {**found, "seconds": time.perf_counter() - start}

    rows.row(f"separate, {name}", timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--rows", nargs="+", default=list(SETTINGS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {}
    for name in given.rows:
        for arch in given.nets:
            rows = Rows(given.work / f"cifar-{arch.replace(':', '-')}.json")
            measure(rows, arch, given.work, name)
            table[arch] = rows.done
    for arch, done in table.items():
        for name, found in done.items():
            print(f"{arch:<20} {name:<24}", *(f"{100 * v:6.2f}" for v in found["balanced"]),
                  "experts", *(f"{100 * v:6.2f}" for v in found["experts"]))  # fmt: skip
    write_results("cifar.json", {"pair": PAIR, "seed": 0, "steps": STEPS, "table": table})


if __name__ == "__main__":
    main()
