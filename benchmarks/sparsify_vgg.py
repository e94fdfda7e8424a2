"""VGG11 on CIFAR-10: 50 of 64 first-layer filters removed, and C1 to C4 (figures 2A to 2D).

    python benchmarks/sparsify_vgg.py --work build/bench --network vgg11_cifar10.pt

Nothing here uses labels. The baseline beside the walk trains on the dense outputs, too, at the
walk's cost. Curves are measured on 1000 test images, last points on all 10 000. Finished parts are
kept in --work: the same command goes on where it stopped. The table is written to
benchmarks/results/; sparsify_vgg_picture.py draws it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Rows, write_results
from sparse_baselines import (
    VGG_DISTIL,
    VGG_FIRST,
    filter_least_squares,
    filter_weights,
    prune_filters_train,
    smallest_filters,
)
from torch import Tensor

from geomerge import PlanStep, ReconfigureOptions, SparsifyOptions, reconfigure
from geomerge.data import Split
from geomerge.data.batchnorm import re_estimate
from geomerge.evaluation.accuracy import accuracy
from geomerge.expert_options import ExpertOptions
from geomerge.loading import load_expert
from geomerge.pruning.goals import goal_stages
from geomerge.pruning.problem import prepare_problem
from geomerge.pruning.results import PrunedExpert, pruned_expert
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.walk import PruneWalker, WalkPlace

LAYER, COUNT = "features.0", 50
DATA = ExpertOptions(
    manifold="cifar10",
    normalisation=("cifar10=0.4914,0.4822,0.4465/0.2470,0.2435,0.2616",),
)
OPTIONS = SparsifyOptions(remove={LAYER: COUNT}, steps=200, stages=10, refresh=10)
MOVE = ReconfigureOptions(steps=60, stages=10, refresh=10)
MOVES = (  # from C2, which is where the walk arrives
    PlanStep("C3", {"classifier.0": 500, "classifier.3": 500}, {}),
    PlanStep("C4", {}, {LAYER: 30}),
)
CURVE = 1000  # test images


class Case(Rows):
    """The network and the rows measured on it."""

    def __init__(self, network: Path, work: Path) -> None:
        super().__init__(work / "sparsify-vgg.json")
        self.dense = load_expert(network, DATA)
        self.problem = prepare_problem(self.dense, OPTIONS.function, OPTIONS.seed)
        self.network, self.w = self.dense.network, self.dense.weights
        self.test = self.problem.task.test
        self.inputs = self.problem.inputs
        # The images come class by class, so they are drawn.
        index = torch.randperm(len(self.test.labels), generator=torch.Generator().manual_seed(0))
        index = index[:CURVE]
        self.few = Split(self.test.inputs.take(index), self.test.labels[index])

    def all(self, w: Tensor) -> float:
        return 100 * accuracy(self.network, w, self.test)

    def some(self, w: Tensor) -> float:
        return 100 * accuracy(self.network, w, self.few)

    def epochs(self, passes: int) -> float:
        return passes / (3 * len(self.inputs))

    def walk(self) -> dict[str, Any]:
        """Walk as `geomerge sparsify` does, and measure where filters have gone."""
        problem = prepare_problem(self.dense, OPTIONS.function, OPTIONS.seed)
        spent: list[float] = []
        walker = PruneWalker(
            problem, OPTIONS.walking, OPTIONS.points,
            on_progress=lambda _: spent.append(self.epochs(problem.cost.passes)),
        )  # fmt: skip
        stages = goal_stages(problem, OPTIONS.goal, OPTIONS.ranking, OPTIONS.walking.stages)
        with tempfile.TemporaryDirectory() as folder:
            place = WalkPlace("walk", Path(folder) / "walk")
            walked = walker.walk(problem.weights, stages, place)
            curve = []
            for step, _ in walked.leg.marks[1:]:
                w = walked.leg.weights(step)
                gone = removed_units(self.network, w, problem.units)[LAYER]
                curve.append(
                    {"removed": len(gone), "test": self.some(w), "epochs": spent[step - 1]}
                )
            torch.save(walked.weights, self._file.with_suffix(".w"))
            return {
                "test": self.all(walked.weights),
                "epochs": self.epochs(problem.cost.passes),
                "curve": curve,
            }

    def train(self, epochs: float) -> dict[str, Any]:
        """Remove one filter after the other and train on the dense outputs in between."""
        steps = int((epochs - 1 / 3) * len(self.inputs) / VGG_DISTIL.batch / COUNT)
        schedule = replace(VGG_DISTIL, steps=max(steps, 1))
        curve = []
        for done in prune_filters_train(
            self.network, self.w, VGG_FIRST, self.inputs, COUNT, schedule
        ):
            if len(done.removed) % 5 == 0:
                spent = self.epochs(done.forwards)
                curve.append(
                    {"removed": len(done.removed), "test": self.some(done.weights), "epochs": spent}
                )
        return {"test": self.all(done.weights), "epochs": curve[-1]["epochs"], "curve": curve}

    def once(self, settle: bool) -> dict[str, Any]:
        """Cut the smallest filters out, at most with statistics estimated again."""
        filters = smallest_filters(self.network, self.w, VGG_FIRST, COUNT)
        w = torch.where(filter_weights(self.network, VGG_FIRST, filters), 0.0, self.w)
        w = re_estimate(self.network, w, [self.inputs]) if settle else w
        return {"test": self.all(w), "epochs": self.epochs(2000) if settle else 0.0}

    def least_squares(self) -> dict[str, Any]:
        filters = smallest_filters(self.network, self.w, VGG_FIRST, COUNT)
        few = self.inputs.sample(2000, 0)
        found = filter_least_squares(self.network, self.w, VGG_FIRST, filters, few)
        return {"test": self.all(found.weights), "epochs": self.epochs(found.forwards)}

    def moves(self, plan: Sequence[PlanStep]) -> list[dict[str, Any]]:
        """Walk through the configurations that follow the walk's."""
        w = torch.load(self._file.with_suffix(".w"), weights_only=True)
        start = PrunedExpert(self.dense, pruned_expert(self.problem, w))
        result = reconfigure(start, plan, MOVE)
        return [
            {
                "name": one.name,
                "test": 100 * one.row.test,
                "cut_out": 100 * one.naive.test,
                "epochs": one.epochs,
                "curve": [{"t": p.t, "agreement": 100 * p.agreement} for p in one.curve],
            }
            for one in result.configurations
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--network", type=Path, required=True, help="the trained VGG11")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    case = Case(arguments.network, arguments.work)
    case.row("dense", lambda: {"test": case.all(case.w), "epochs": 0.0})
    case.row("walk", case.walk)
    case.row("smallest filters cut out", lambda: case.once(settle=False))
    case.row("cut out, statistics measured anew", lambda: case.once(settle=True))
    case.row("cut out, least squares in the next layer", case.least_squares)
    case.row(
        "one by one, trained on the dense outputs, equal cost",
        lambda: case.train(case.done["walk"]["epochs"]),
    )
    case.row("C3 and C4", lambda: case.moves(MOVES))
    write_results("sparsify_vgg.json", {"table": case.done})


if __name__ == "__main__":
    main()
