"""MNIST and Fashion-MNIST in one network with one 10-way head: every row of the README's table.

    python benchmarks/merge_mnist_fashion.py --work build/bench          # both networks, 3 seeds
    python benchmarks/merge_mnist_fashion.py --work build/bench --timing # seconds, quiet machine

Experts are trained from independent initialisations. Every point is picked on the selection
splits, every number is measured on the test splits. Finished parts are kept in --work: the same
command goes on where it stopped. The table is written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Rows, expert, prepared, walked, write_results

from geomerge import Network, load_task
from geomerge.comparison.context import Context
from geomerge.comparison.registry import METHODS
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import Score, parse_pick
from geomerge.evaluation.search import search
from geomerge.merging.choice import choose_preset
from geomerge.merging.walker import Walker
from geomerge.metrics import EuclideanMetric
from geomerge.networks.architectures import create_network, rebuild_network
from geomerge.training import fine_tune, straight_line, train
from geomerge.walks.state import WalkState
from geomerge.walks.walk import (
    FunctionWalkOptions,
    WeightWalkOptions,
    walk_straight,
    walk_toward_function,
    walk_toward_weights,
)

NAMES = ("mnist", "fashion-mnist")
FINE_TUNE_STEPS = 200


STEPS = 240
MORE = 24  # steps with as many samples as the joint walk's three measurements of its metric


class Case(Rows):
    """Two experts of one architecture and seed, and the rows measured on them."""

    def __init__(self, arch: str, seed: int, work: Path, skip: Sequence[str] = ()) -> None:
        super().__init__(work / f"{arch}-{seed}.json", skip)
        self.arch, self.seed = arch, seed
        self.tasks = [load_task(name) for name in NAMES]
        self.networks = [
            expert(work, arch, name, seed + 1000 * k, epochs=8) for k, name in enumerate(NAMES)
        ]
        self.network = Network(rebuild_network(self.networks[0].weights, arch, "a"))
        self.w_a, self.w_b = (self.network.ravel(c.weights) for c in self.networks)
        pairs = zip("ab", (self.w_a, self.w_b), self.tasks, strict=True)
        self.experts = {name: accuracy(self.network, w, t.select) for name, w, t in pairs}

    def test(self, w: torch.Tensor) -> list[float]:
        return [accuracy(self.network, w, task.test) for task in self.tasks]

    def picked(self, points: Sequence[torch.Tensor], rule: str = "max-min") -> list[float]:
        """Pick on the selection splits, report on test."""
        chosen = parse_pick(rule, self.experts)

        def measure(i: int) -> Score:
            found = [accuracy(self.network, points[i], t.select) for t in self.tasks]
            return Score(dict(zip("ab", found, strict=True)))

        best, _ = search(range(len(points)), measure, chosen)
        return self.test(points[best])


def measure(case: Case) -> None:
    """Fill in every row of a case."""
    task_a, task_b = case.tasks
    network, w_a, w_b = case.network, case.w_a, case.w_b
    case.row("expert a (MNIST)", lambda: case.test(w_a))
    case.row("expert b (Fashion)", lambda: case.test(w_b))
    case.row("straight line", lambda: case.picked(straight_line(w_a, w_b, 41)))

    rules = ("max-min", "balanced")

    def rows(name: str, *given: str, **settings: Any) -> dict[str, list[float]]:
        found = walked(case.networks, given or ("a=mnist",), rules, **settings)
        return {f"{name}, {rule}": found[rule] for rule in rules}

    case.row("sketch", lambda: rows("sketch walk"))
    case.row("learned", lambda: rows("sketch walk, damping learned", learn="damping"))
    case.row("joint", lambda: rows("joint walk", *NAMES, steps=STEPS))
    case.row(
        "distillation",
        lambda: rows("two-teacher distillation", *NAMES, metric="euclidean", steps=STEPS + MORE),
    )
    case.row("euclidean", lambda: rows("Euclidean walk", metric="euclidean", preset="sketch"))
    case.row("paper", lambda: rows("paper preset", preset="paper"))

    def same_settings() -> list[float]:
        """The sketch walk with nothing changed but the metric."""
        merge = prepared(case.networks, ("a=mnist",))
        direction = Walker(merge).direction(merge.space["a"])
        walk = FunctionWalkOptions(damping=0.0)
        steps = walk_toward_function(w_b, lambda w: EuclideanMetric(), [direction], walk)
        points = [w_b] + [p.weights for p in steps]
        return case.picked(points[:12] + points[12::20])  # it forgets within a few steps

    case.row("Euclidean walk, settings of the sketch walk, max-min", same_settings)

    def equation_7() -> list[float]:
        """The paper's step alone: no drift taken back, nothing else known."""
        merge = prepared(case.networks, ("a=mnist",), preset="paper")
        metric_at = Walker(merge).metric_at([merge.space["a"]], WeightWalkOptions.least)
        points = [p.weights for p in walk_toward_weights(w_a, w_b, metric_at, WeightWalkOptions())]
        last = walk_straight(points[-1], w_b, metric_at(points[-1]), 20)
        points = points[:: max(1, len(points) // 60)] + [points[-1]] + [p.weights for p in last]
        return case.picked(points)

    case.row("eq. (7) alone", equation_7)

    def fine_tuned() -> dict[str, list[float]]:
        points = list(
            fine_tune(network, w_b, task_a.train, steps=FINE_TUNE_STEPS, learning_rate=0.02)
        )
        return {
            "b fine-tuned on MNIST, best step": case.picked(points),
            "b fine-tuned on MNIST, then the line back": case.picked(
                straight_line(points[-1], w_b, 41)
            ),
        }

    case.row("fine-tuning", fine_tuned)

    def forgetting() -> dict[str, list[float]]:
        end = train(network, w_a, [task_b.train], epochs=8, seed=7)
        return {
            "a fine-tuned on Fashion to the end (forgetting)": case.test(end),
            "a fine-tuned on Fashion to the end, then the line back": case.picked(
                straight_line(w_a, end, 41)
            ),
        }

    case.row("forgetting", forgetting)

    def zipped() -> list[float]:
        rule = parse_pick("max-min", case.experts)
        context = Context(prepared(case.networks, NAMES), rule, max_samples=0)
        answer = METHODS["zipit"].make(context).answer
        assert isinstance(answer, torch.Tensor)
        return case.test(answer)

    case.row("ZipIt", zipped)
    new = create_network(case.arch, task_a.input_shape, task_a.classes, seed=5000 + case.seed)
    fresh = Network(new).initial
    case.row(
        "joint training",
        lambda: case.test(
            train(network, fresh, [task_a.train, task_b.train], epochs=8, seed=7 + case.seed)
        ),
    )


def timing(arch: str, work: Path) -> dict[str, float]:
    """Time one walk with the sketch given against the training of one expert, in one run."""
    case = Case(arch, 0, work)
    task = case.tasks[0]
    start = time.perf_counter()
    new = create_network(arch, task.input_shape, task.classes, seed=5000)
    train(case.network, Network(new).initial, [task.train], epochs=8)
    training = time.perf_counter() - start
    merge = prepared(case.networks, ("a=mnist",))
    start = time.perf_counter()
    preset = choose_preset(merge)
    begin = next(preset.starts()).weights
    for _ in preset.stage_walk(preset.stages[0], begin)(3e-5, WalkState()).points:
        pass
    walk = time.perf_counter() - start
    print(f"{arch}: walk {walk:.1f} s, expert {training:.1f} s, ratio {walk / training:.2f}")
    return {"walk_s": walk, "expert_s": training, "ratio": walk / training}


def flat(done: dict[str, Any]) -> dict[str, list[float]]:
    """Return all rows of a case by their own names."""
    rows: dict[str, list[float]] = {}
    for name, value in done.items():
        if isinstance(value, list):
            rows[name] = value
        else:
            rows.update(value)
    return rows


def table(cases: dict[str, list[dict[str, list[float]]]]) -> dict[str, Any]:
    """Print the means over seeds and return them."""
    found: dict[str, Any] = {}
    for arch, seeds in cases.items():
        print(f"\n{arch}: mean of {len(seeds)} seeds, test accuracy %, MNIST / Fashion / smaller")
        found[arch] = {}
        for name in [n for n in seeds[0] if all(n in rows for rows in seeds)]:
            values = [[100 * v for v in rows[name]] for rows in seeds]
            means = [statistics.mean(v) for v in zip(*values, strict=True)]
            low = statistics.mean(min(v) for v in values)
            found[arch][name] = {"mean": means, "smaller": low, "seeds": values}
            print(f"  {name:<56} {means[0]:6.2f} {means[1]:6.2f}  {low:6.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--arch", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--skip", nargs="*", default=[], help="names of rows to leave out")
    parser.add_argument("--timing", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.timing:
        result = {arch: timing(arch, given.work) for arch in given.arch}
        write_results("merge_timing.json", {"timing": result})
    else:
        cases: dict[str, list[dict[str, list[float]]]] = {}
        for arch in given.arch:
            for seed in given.seeds:
                case = Case(arch, seed, given.work, given.skip)
                measure(case)
                cases.setdefault(arch, []).append(flat(case.done))
        # Networks that were not measured this time keep the rows that they have.
        before = json.loads((RESULTS / "merge.json").read_text())["table"]
        write_results("merge.json", {"seeds": given.seeds, "table": {**before, **table(cases)}})


if __name__ == "__main__":
    main()
