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
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Rows, expert, walked, write_results

from geomerge import Checkpoint, MergeOptions
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import parse_pick
from geomerge.evaluation.search import search
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.scoring import Scorer
from geomerge.training import straight_line

TASKS = ("mnist", "fashion-mnist")
RULES = ("balanced", "max-min")
ALIGN = ("none", "weights", "activations")
SEEDS = (0, 1)
STEPS = 240
PRESETS = {
    "sketch walk": MergeOptions(manifold=TASKS[:1], preset="sketch", steps=STEPS),
    "joint walk": MergeOptions(manifold=TASKS, preset="joint", steps=STEPS),
    "paper preset": MergeOptions(manifold=TASKS[:1], preset="paper", damping=1e-3),
}


def line(networks: Sequence[Checkpoint], options: MergeOptions) -> dict[str, Any]:
    """Pick from the straight line, and tell how far the networks are from each other."""
    sides = prepare_sides(networks, options)
    a, b = sides.all
    points, scorer = straight_line(a.w, b.w), Scorer(sides.all, options.output)
    experts = {s.name: accuracy(s.network, s.w, s.task.select) for s in sides}
    found: dict[str, Any] = {"distance": float((a.w - b.w).norm())}
    for name in RULES:
        best, _ = search(range(len(points)), lambda i: scorer(points[i]), parse_pick(name, experts))
        found[name] = [accuracy(s.network, points[best], s.task.test) for s in sides]
    return found


def measure(rows: Rows, seed: int, work: Path) -> None:
    networks = [expert(work, "mlp", t, seed + 1000 * k, epochs=8) for k, t in enumerate(TASKS)]
    for align in ALIGN:
        options = replace(PRESETS["sketch walk"], align=align)
        rows.row(f"straight line, {align}", lambda o=options: line(networks, o))
    for preset, plain in PRESETS.items():
        for align in ALIGN:
            options = replace(plain, align=align)
            rows.row(f"{preset}, {align}", lambda o=options: walked(networks, o, RULES))


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
