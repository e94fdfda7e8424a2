"""Streams of tasks: every row of the README's tables of continual learning.

    python benchmarks/continual.py --work build/bench

Every row has the same network, the same epochs per task (an expert's and a walk's together),
batches of 128 and SGD with momentum 0.9 and a falling learning rate. Each row's learning rate and
strength are chosen among as many values, on the selection splits of the first two tasks, with seed
0; where the best of them diverges on the whole stream with that seed, the next best is taken.
Numbers are of the test splits. Ours, EWC, replay and joint training have seeds 0, 1, 2; the others
seed 0. Finished parts are kept in --work: the same command goes on where it stopped. The tables are
written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, Rows, write_results

from geomerge.errors import NumericalError
from geomerge.options import replace_options
from geomerge.strategies import StreamOptions
from geomerge.strategies.learner import Training
from geomerge.strategies.methods.geodesic import expert_epochs
from geomerge.strategies.networks import make_network
from geomerge.strategies.registry import StreamCase
from geomerge.strategies.streams import Stream, make_stream
from geomerge.strategies.table import learn_row

STREAMS = {
    "permuted 10": StreamOptions("permuted-mnist", epochs=5),
    # Mammoth's setting: one epoch; ours walks with labels and without an expert
    "permuted 20": StreamOptions(
        "permuted-mnist", experiences=20, epochs=1, labels=True, memory_mb=8.0
    ),
    "mnist fashion": StreamOptions("mnist-fashion", epochs=8, arch="mlp-400"),
    "split domain": StreamOptions("split-mnist", "domain", epochs=5, arch="mlp-400"),
    "split class": StreamOptions("split-mnist", "class", epochs=5, arch="mlp-400"),
}
# Variants of geomerge's own row.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "permuted 10": {
        "geodesic, labels": {"labels": True},
        "geodesic, Euclidean metric": {"metric": "euclidean"},
    },
    "split class": {
        "geodesic, 40 inputs": {"examples": 40},
        "geodesic, Euclidean metric": {"metric": "euclidean"},
    },
}
SEEDS = (0, 1, 2)  # choices are made with the first
MANY_SEEDS = ("geodesic", "ewc", "replay-200", "replay-500", "joint")
RATES = (0.02, 0.05, 0.1)
STRENGTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    "geodesic": ("damping", (0.03, 0.1, 0.3)),
    "ewc": ("ewc_lambda", (100.0, 1000.0, 10000.0)),
    "si": ("si_lambda", (10.0, 100.0, 1000.0)),
    "lwf": ("lwf_alpha", (0.3, 1.0, 3.0)),
}


class Case(Rows):
    """One stream with one seed."""

    def __init__(self, name: str, seed: int, work: Path) -> None:
        super().__init__(work / f"continual-{name.replace(' ', '-')}-{seed}.json")
        self.options = replace_options(STREAMS[name], seed=seed)
        self._stream: Stream | None = None

    @property
    def stream(self) -> Stream:
        if self._stream is None:
            self._stream = make_stream(self.options)
        return self._stream

    def learn(self, row: str, first: int | None = None, **changes: Any) -> dict[str, Any]:
        options = replace_options(self.options, **changes)
        shared = options.training
        network = make_network(self.stream, shared.arch, options.seed)
        training = Training(
            network, shared.learning_rate, shared.epochs, shared.batch, turns=shared.turns
        )
        case = StreamCase(row, training, options, options.count)
        try:
            found = asdict(learn_row(case, self.stream, first=first))
        except NumericalError as error:
            return {"diverged": str(error), "select": 0.0}
        merges = found.pop("merges")
        if merges:
            found["merge seconds"] = [m["merge_seconds"] for m in merges]
            spent = sum(m["expert_seconds"] for m in merges)
            trained = expert_epochs(options) > 0
            found["merge by expert"] = found["seconds"]["merging"] / spent if trained else None
        return found

    def select(self, row: str, changes: dict[str, Any]) -> float:
        """Return the accuracy on the selection splits of the first two tasks; diverged is 0."""
        value: float = self.learn(row, 2, **changes)["select"]
        return value

    def ranked(self, row: str) -> list[dict[str, Any]]:
        """Return settings of a row, the best on the first two tasks first."""
        tried: list[tuple[float, dict[str, Any]]] = []

        def best(settings: list[dict[str, Any]]) -> dict[str, Any]:
            for changes in settings:
                name = f"choice {row} {changes}"
                self.row(name, partial(self.select, row, changes))
                tried.append((self.done[name], changes))
            return max(tried[-len(settings) :], key=lambda pair: pair[0])[1]

        found = best([{"learning_rate": rate} for rate in RATES])
        if row in STRENGTHS:
            flag, values = STRENGTHS[row]
            tried.clear()  # one of the strengths is that with which rates were tried
            best([found | {flag: value} for value in values])
        return [changes for _, changes in sorted(tried, key=lambda pair: -pair[0])]

    def whole(self, row: str) -> tuple[str, dict[str, Any]]:
        """Learn the whole stream with the best settings that do not diverge there.

        Returns:
            The name under which it was kept, and the settings.
        """
        for k, settings in enumerate(self.ranked(row)):
            name = row if k == 0 else f"{row}, choice {k + 1}"
            self.row(name, partial(self.learn, row, **settings))
            if "diverged" not in self.done[name]:
                break
        return name, settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--rows", nargs="+", help="the others stay as they are in the table")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.streams:
        cases = [Case(name, seed, arguments.work) for seed in SEEDS]
        stored = RESULTS / f"continual_{name.replace(' ', '_')}.json"
        rows = json.loads(stored.read_text())["table"] if arguments.rows else {}
        for row in arguments.rows or cases[0].options.rows:
            kept, settings = cases[0].whole(row)
            wanted = {kept: settings}
            if row == "geodesic":
                wanted |= {k: settings | v for k, v in VARIANTS.get(name, {}).items()}
            for title, changes in wanted.items():
                for case in cases if row in MANY_SEEDS else cases[:1]:
                    case.row(title, partial(case.learn, row, **changes))
                found = [c.done[title] for c in cases if title in c.done]
                rows[row if title == kept else title] = summary(found, changes)
            write_results(stored.name, {"table": rows})


def summary(found: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the mean over seeds; those that diverged are counted."""
    every = len(found)
    found = [row for row in found if "diverged" not in row]
    if not found:
        return {"diverged": every, "settings": settings}

    def mean(of: Any) -> float | None:
        values = [of(row) for row in found]
        return None if None in values else statistics.mean(values)

    lasts = [row["matrix"][-1] for row in found]
    return {
        "accuracy": mean(lambda r: r["accuracy"]),
        "seeds": [r["accuracy"] for r in found],
        "tasks": [statistics.mean(task) for task in zip(*lasts, strict=True)],
        "backward_transfer": mean(lambda r: r["backward_transfer"]),
        "forgetting": mean(lambda r: r["forgetting"]),
        "megabytes": mean(lambda r: r["kept"]["megabytes"]),
        "examples": mean(lambda r: r["kept"]["examples"]),
        "passes": mean(lambda r: r["passes"]),
        "seconds": mean(lambda r: sum(r["seconds"].values())),
        "merge by expert": mean(lambda r: r.get("merge by expert")),
        "diverged": every - len(found),
        "settings": settings,
    }


if __name__ == "__main__":
    main()
