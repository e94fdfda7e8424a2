"""MNIST and Fashion-MNIST in one network, with and without the units of b in the order of a's.

    python benchmarks/alignment.py --work build/bench

Both networks share one 10-way head and were initialised independently. Activations are compared on
MNIST's inputs, in the joint preset on those of both tasks. Every point is picked on the selection
splits, every number is measured on the test splits. The paper preset walks with one damping.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import Rows, expert, prepared, walked, write_results

from geomerge import Checkpoint
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import parse_pick
from geomerge.evaluation.search import search
from geomerge.training import straight_line

TASKS = ("mnist", "fashion-mnist")
RULES = ("balanced", "max-min")
ALIGN = ("none", "weights", "activations")
SEEDS = (0, 1)
STEPS = 240
PRESETS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "sketch walk": (TASKS[:1], {"preset": "sketch", "steps": STEPS}),
    "joint walk": (TASKS, {"preset": "joint", "steps": STEPS}),
    "paper preset": (TASKS[:1], {"preset": "paper", "damping": 1e-3}),
}


def line(networks: Sequence[Checkpoint], align: str) -> dict[str, Any]:
    """Pick from the straight line, and return the distance between the networks."""
    found_space = prepared(networks, TASKS[:1], align=align)
    space = found_space.space
    a, b = (expert.weights for expert in space)
    points, scorer = straight_line(a, b), found_space.scorer(space.experts)
    experts = {expert.name: expert.accuracy("select") for expert in space}
    found: dict[str, Any] = {"distance": float((a - b).norm())}
    for name in RULES:
        best, _ = search(range(len(points)), lambda i: scorer(points[i]), parse_pick(name, experts))
        found[name] = [accuracy(e.network, points[best], e.task.test) for e in space]
    return found


def measure(rows: Rows, seed: int, work: Path) -> None:
    networks = [expert(work, "mlp", t, seed + 1000 * k, epochs=8) for k, t in enumerate(TASKS)]
    for align in ALIGN:
        rows.row(f"straight line, {align}", partial(line, networks, align))
    for preset, (manifold, options) in PRESETS.items():
        for align in ALIGN:
            walk = partial(walked, networks, manifold, RULES, align=align, **options)
            rows.row(f"{preset}, {align}", walk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    cases = []
    for seed in SEEDS:
        rows = Rows(given.work / f"alignment-{seed}.json")
        measure(rows, seed, given.work)
        cases.append(rows.done)
    table: dict[str, Any] = {}
    for name in cases[0]:
        for rule in RULES:
            values = [[100 * v for v in case[name][rule]] for case in cases]
            mean = [statistics.mean(v) for v in zip(*values, strict=True)]
            table.setdefault(name, {})[rule] = {"mean": mean, "seeds": values}
            print(f"{name:<30}{rule:<10}", *(f"{v:6.2f}" for v in mean))
        if "distance" in cases[0][name]:
            table[name]["distance"] = [case[name]["distance"] for case in cases]
    write_results("alignment.json", {"tasks": TASKS, "seeds": SEEDS, "table": table})


if __name__ == "__main__":
    main()
