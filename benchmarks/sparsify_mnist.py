"""LeNet-300-100 on MNIST at 70 to 98 % sparsity: every row of the README's table.

    python benchmarks/sparsify_mnist.py --work build/bench

Dense networks are `geomerge train`'s. Everything was chosen on selection splits, every number is
measured on the test split. The walk uses no labels; rows that do say so. The distillation beside
it has the walk's cost in forward passes, for each level and seed; with a thousand inputs it has
2000 steps, more of which did not help it. The last leg with labels is a quarter of the walk's steps
more. Finished parts are kept in
--work: the same command goes on where it stopped. The table is written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Rows, expert, write_results
from sparse_baselines import (
    LENET_DAMPING,
    LENET_DISTIL,
    LENET_DISTIL_FEW,
    LENET_LABELS,
    LENET_LABELS_FEW,
    Sparse,
    distil_masked,
    fine_tune_masked,
    layerwise_least_squares,
    magnitude_masks,
    one_shot,
    prune_train,
    steps_within,
)
from torch import Tensor

from geomerge import Expert, Network, SparsifyOptions, load_task
from geomerge.data import Split
from geomerge.evaluation.accuracy import accuracy
from geomerge.networks.architectures import rebuild_network
from geomerge.pruning.goals import goal_stages
from geomerge.pruning.problem import PruneProblem, prepare_problem
from geomerge.pruning.walk import PruneWalk, PruneWalker, WalkPlace

ARCH = "lenet-300-100"
LEVELS = (0.98, 0.95, 0.9, 0.7)
FEW = 1000
FEW_LEVEL = 0.98


class Case(Rows):
    """A dense network and the rows measured on it."""

    def __init__(self, seed: int, work: Path) -> None:
        super().__init__(work / f"sparsify-{seed}.json")
        self.seed = seed
        self.dense = expert(work, ARCH, "mnist", seed, epochs=20, sketch=False)
        self.task = load_task("mnist")
        self.network = Network(rebuild_network(self.dense.weights, ARCH, "dense"))
        self.w = self.network.initial
        self.inputs = self.task.train.inputs
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(seed))
        self.few = self.inputs.sample(FEW, seed)  # in this order
        self.few_labels = self.task.train.labels[order[:FEW]]

    def test(self, w: Tensor) -> float:
        return 100 * accuracy(self.network, w, self.task.test)

    def timed(self, make: Callable[[], Sparse]) -> dict[str, Any]:
        start = time.perf_counter()
        found = make()
        seconds = time.perf_counter() - start
        count = len(self.inputs)
        epochs = found.forwards / (3 * count)
        return {"test": self.test(found.weights), "epochs": epochs, "seconds": seconds}

    def walk(self, level: float, **more: Any) -> dict[str, Any]:
        """Walk, measure, and go on with labels."""
        options = SparsifyOptions(sparsity=level, seed=self.seed, **more)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            dense = Expert.from_checkpoint(self.dense).with_task(self.task)
            problem = prepare_problem(dense, options.function, options.seed)
            walker = PruneWalker(problem, options.walking, options.points)
            stages = goal_stages(problem, options.goal, options.ranking, options.walking.stages)
            place = WalkPlace("walk", Path(folder) / "walk")
            walked = walker.walk(problem.weights, stages, place)
            found = self._found(problem, walked, time.perf_counter() - start)
            if options.function.inputs is None:
                later = walker.finish_with_labels(walked)
                found["then"] = self._found(problem, later, time.perf_counter() - start)
            return found

    def _found(self, problem: PruneProblem, walked: PruneWalk, seconds: float) -> dict[str, Any]:
        return {
            "test": self.test(walked.weights),
            "epochs": problem.cost.epochs(len(self.inputs)),
            "seconds": seconds,
            "agreement": 100 * walked.agreement,
        }

    def level(self, level: float) -> None:
        """Measure every row at one sparsity."""
        network, w, train = self.network, self.w, self.task.train
        name = f"{100 * level:g} %"
        masks = magnitude_masks(network, w, level)
        self.row(f"{name}: walk", lambda: self.walk(level))
        epochs = self.done[f"{name}: walk"]["epochs"]
        near = min(LENET_DISTIL, key=lambda known: abs(known - epochs))
        distil = self._within(LENET_DISTIL[near], epochs)
        self.row(
            f"{name}: masked distillation, equal cost",
            lambda: self.timed(lambda: distil_masked(network, w, level, self.inputs, distil)),
        )
        self.row(
            f"{name}: one-shot magnitude",
            lambda: self.timed(lambda: one_shot(network, w, masks)),
        )
        self.row(
            f"{name}: layerwise least squares",
            lambda: self.timed(
                lambda: layerwise_least_squares(
                    network, w, masks, self.inputs.sample(4000, self.seed),
                    damping=LENET_DAMPING,
                )
            ),
        )  # fmt: skip
        self.row(f"{name}: walk, last leg with labels", lambda: self.done[f"{name}: walk"]["then"])
        labelled = self._within(LENET_LABELS[near], epochs, teacher=False)
        self.row(
            f"{name}: magnitude, then fine-tuning with labels",
            lambda: self.timed(lambda: fine_tune_masked(network, w, masks, train, labelled)),
        )
        self.row(
            f"{name}: iterative pruning and training with labels",
            lambda: self.timed(lambda: prune_train(network, w, level, train, labelled)),
        )

    def with_few(self) -> None:
        """Measure what a thousand inputs are enough for."""
        network, w = self.network, self.w
        labelled = Split(self.few, self.few_labels)
        self.row(
            f"{FEW} inputs: walk",
            lambda: self.walk(FEW_LEVEL, inputs=FEW),
        )
        distil = replace(LENET_DISTIL_FEW, seed=self.seed)
        self.row(
            f"{FEW} inputs: masked distillation",
            lambda: self.timed(
                lambda: distil_masked(network, w, FEW_LEVEL, self.few, distil, loss="logits")
            ),
        )
        tune = replace(LENET_LABELS_FEW, seed=self.seed)
        masks = magnitude_masks(network, w, FEW_LEVEL)
        self.row(
            f"{FEW} inputs: magnitude, then fine-tuning with labels",
            lambda: self.timed(lambda: fine_tune_masked(network, w, masks, labelled, tune)),
        )
        self.row(
            f"{FEW} inputs: iterative pruning and training with labels",
            lambda: self.timed(lambda: prune_train(network, w, FEW_LEVEL, labelled, tune)),
        )

    def _within(self, schedule: Any, epochs: float, teacher: bool = True) -> Any:
        steps = steps_within(epochs, len(self.inputs), schedule.batch, teacher)
        return replace(schedule, steps=steps, seed=self.seed)


def table(cases: list[Case]) -> dict[str, Any]:
    """Return the mean over seeds of every row, and its drop below the dense networks."""
    dense = [case.test(case.w) for case in cases]
    rows: dict[str, Any] = {"dense": {"mean": statistics.mean(dense), "seeds": dense}}
    for name in cases[0].done:
        if not all(name in case.done for case in cases):
            continue
        found = [case.done[name] for case in cases]
        tests = [row["test"] for row in found]
        rows[name] = {
            "mean": statistics.mean(tests),
            "drop": statistics.mean(d - t for d, t in zip(dense, tests, strict=True)),
            "seeds": tests,
            "epochs": statistics.mean(row["epochs"] for row in found),
            "seconds": statistics.mean(row["seconds"] for row in found),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    cases = [Case(seed, arguments.work) for seed in arguments.seeds]
    for case in cases:
        case.with_few()
        for level in LEVELS:
            case.level(level)
    rows = table(cases)
    write_results("sparsify.json", {"seeds": arguments.seeds, "table": rows})
    for name, row in rows.items():
        print(f"{name:55s} {row['mean']:6.2f}")


if __name__ == "__main__":
    main()
