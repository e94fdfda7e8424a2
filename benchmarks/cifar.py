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

from geomerge import MergeOptions

sys.path.insert(0, str(Path(__file__).parent))  # for nets:...
PAIR = ("cifar10@0-4", "cifar10@5-9")
NETS = {"nets:resnet18_bn": 3, "nets:resnet18_gn": 3, "vit-cifar": 1}  # epochs
RATES = {"nets:resnet18_bn": 0.05, "nets:resnet18_gn": 0.01, "vit-cifar": 0.02}
STEPS = 40


def measure(rows: Rows, arch: str, work: Path) -> None:
    networks = [
        expert(
            work, arch, task, 1000 * k, epochs=NETS[arch], learning_rate=RATES[arch], sketch=False
        )
        for k, task in enumerate(PAIR)
    ]
    both = tuple(f"{s}={t}" for s, t in zip("ab", PAIR, strict=True))

    def timed(**settings: Any) -> dict[str, Any]:
        start = time.perf_counter()
        found = walked(networks, MergeOptions(manifold=both, steps=STEPS, **settings))
        return {**found, "seconds": time.perf_counter() - start}

    rows.row("separate, sketch", lambda: timed(head="separate", preset="sketch", damping=3e-5))
    rows.row("separate, joint", lambda: timed(head="separate"))
    rows.row("separate, distillation", lambda: timed(head="separate", metric="euclidean"))
    if arch.endswith("_bn"):
        rows.row(
            "separate, distillation, statistics kept",
            lambda: timed(head="separate", metric="euclidean", bn="keep"),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {}
    for arch in given.nets:
        rows = Rows(given.work / f"cifar-{arch.replace(':', '-')}.json")
        measure(rows, arch, given.work)
        table[arch] = rows.done
        for name, found in rows.done.items():
            print(f"{arch:<20} {name:<36}", *(f"{100 * v:6.2f}" for v in found["balanced"]),
                  "experts", *(f"{100 * v:6.2f}" for v in found["experts"]))  # fmt: skip
    write_results("cifar.json", {"pair": PAIR, "seed": 0, "table": table})


if __name__ == "__main__":
    main()
