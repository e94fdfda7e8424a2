"""MNIST, Fashion-MNIST and MNIST turned by a quarter in one network with one 10-way head.

    python benchmarks/three_networks.py --work build/bench

Points are picked on the selection splits (balanced), numbers are measured on the test splits.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from common import Rows, expert, walked, write_results

from geomerge import Network, load_task
from geomerge.evaluation.accuracy import accuracy
from geomerge.networks.architectures import create_network
from geomerge.training import train

TASKS = ("mnist", "fashion-mnist", "rotated-mnist")
SEEDS = (0, 1, 2)
STEPS, MORE = 240, 24


def measure(rows: Rows, seed: int, work: Path) -> None:
    networks = [expert(work, "mlp", t, seed + 1000 * k, epochs=8) for k, t in enumerate(TASKS)]
    tasks = [load_task(name) for name in TASKS]

    def balanced(manifold: tuple[str, ...], steps: int, metric: str = "kronecker") -> Any:
        return walked(networks, manifold, steps=steps, metric=metric)["balanced"]

    rows.row("joint walk (inputs of all)", lambda: balanced(TASKS, STEPS))
    rows.row("distillation (Euclidean)", lambda: balanced(TASKS, STEPS + MORE, "euclidean"))
    rows.row("sketch walks, c kept by its sketch", lambda: balanced(TASKS[:2], STEPS))
    network = Network(create_network("mlp", tasks[0].input_shape, 10, seed=5000 + seed))

    def mean() -> list[float]:
        w = torch.stack([network.ravel(c.weights) for c in networks]).mean(dim=0)
        return [accuracy(network, w, t.test) for t in tasks]

    def joint() -> list[float]:
        w = train(network, network.initial, [t.train for t in tasks], epochs=8, seed=7 + seed)
        return [accuracy(network, w, t.test) for t in tasks]

    def experts() -> list[float]:
        pairs = zip(networks, tasks, strict=True)
        return [accuracy(network, network.ravel(c.weights), t.test) for c, t in pairs]

    rows.row("experts", experts)
    rows.row("mean of the weights", mean)
    rows.row("joint training", joint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    cases = []
    for seed in SEEDS:
        rows = Rows(given.work / f"three-{seed}.json")
        measure(rows, seed, given.work)
        cases.append(rows.done)
    table = {}
    for name in cases[0]:
        values = [[100 * v for v in case[name]] for case in cases]
        table[name] = {"mean": [statistics.mean(v) for v in zip(*values, strict=True)],
                       "seeds": values}  # fmt: skip
        print(f"{name:<40}", *(f"{v:6.2f}" for v in table[name]["mean"]))
    write_results("three_networks.json", {"tasks": TASKS, "seeds": SEEDS, "table": table})


if __name__ == "__main__":
    main()
