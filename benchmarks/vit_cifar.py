"""Merges of two vit-cifar on halves of CIFAR-10, aligned by permutations or rotations.

    python benchmarks/train_vit_cifar.py --work build/bench --out build/bench/vit-cifar-1 --seed 1
    python benchmarks/vit_cifar.py --work build/bench --networks build/bench/vit-cifar-1

Splits and rows are those of ``resnet20.py``, with all 22500 unlabelled inputs of each network.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import resnet20
from common import Rows
from resnet20 import FILES, SELECTED, task
from train_vit_cifar import pooled_cifar10

import geomerge as gm
from geomerge.alignment import ROTATIONS
from geomerge.merging.options import ALIGN

KIND, HEAD = "vit-cifar", "separate"
CASES = {"50 steps": 50, "250 steps": 250}  # of the joint walk


def experts(networks: Path, work: Path) -> list[gm.Expert]:
    """Return the two networks with all their unlabelled inputs."""
    data = pooled_cifar10(work, json.loads((networks / "seconds.json").read_text())["side"])
    return [
        gm.Expert.load(networks / file, task(data, classes, chosen=SELECTED))
        for file, classes in FILES.items()
    ]


def measure_case(name: str, networks: Path, work: Path) -> None:
    """Measure the rows of a table of one pair that are not known yet."""
    steps, both = CASES[name], experts(networks, work)
    rows = Rows(resnet20.rows_file(work, networks, name, KIND))
    rows.row("experts", lambda: {"test": [expert.accuracy() for expert in both]})
    for align in ALIGN:
        rows.row(f"mean, align {align}", partial(resnet20.mean, both, HEAD, align))
    for align in ("none", "activations", ROTATIONS):
        made = partial(resnet20.row, both, HEAD, "regmean", steps, align)
        rows.row(f"RegMean, align {align}", made)
    for method in ("joint-walk", "distillation"):
        for align in (ROTATIONS, "none"):
            made = partial(resnet20.row, both, HEAD, method, steps, align)
            rows.row(f"{method}, align {align}", made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--networks", type=Path, nargs="+", required=True)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for pair in given.networks:
        for name in given.cases:
            measure_case(name, pair, given.work)
    resnet20.write_tables(KIND, CASES, given.networks, given.work)


if __name__ == "__main__":
    main()
