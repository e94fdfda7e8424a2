"""Class-incremental Split CIFAR-10 from scratch: accuracy and stored bytes of each method.

    python benchmarks/stream_cifar.py --work build/bench --rows geodesic frozen randumb

Five tasks of two classes, or a first of five and then one by one, in an order of classes that the
seed draws; a convolutional network of 0.25 million weights, whose training has quarter turns of
images as further classes in every row that trains it. Numbers are of the test splits, for choices
of the selection splits. Where the head is made of class statistics that were carried to new
features, "true" is the accuracy with statistics of all classes' own training images in the final
features. In rows "geodesic, views" and "frozen, views" statistics are of mirrored and shifted
images too. Finished rows are kept in --work, and the table is written after each; rows that --rows
does not name stay as they are in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Rows, write_results

from geomerge.continual import measure_statistics
from geomerge.continual.image_views import class_views
from geomerge.options import replace_options
from geomerge.strategies import StreamOptions
from geomerge.strategies.examples import Examples
from geomerge.strategies.learner import Training
from geomerge.strategies.networks import accuracy, make_network
from geomerge.strategies.registry import StreamCase
from geomerge.strategies.streams import Stream, make_stream
from geomerge.strategies.table import make_learner, with_inputs

STREAMS: dict[str, dict[str, Any]] = {
    "five by two": {},
    "five then one by one": {"experiences": 6, "first_classes": 5},
    "five by two, task known": {"scenario": "task"},
}
ROWS = (
    "naive", "frozen", "randumb", "slda", "replay-bytes", "der++", "joint", "geodesic",
    "frozen, views", "geodesic, views",
)  # fmt: skip
_VIEWS = "mirrored"
_BATCH = 1000


def learn(
    tasks: Stream, options: StreamOptions, row: str, split: str = "test", **changes: Any
) -> dict[str, Any]:
    """Learn a stream with one method, and measure it on a split after each task."""
    parts = {"test": tasks.test, "select": tasks.select}[split]
    row, _, viewed = row.partition(", ")
    views = _VIEWS if viewed else "none"
    options = replace_options(options, **changes, **({"views": views} if viewed else {}))
    shared = options.training
    network = make_network(tasks, shared.arch, options.seed)
    training = Training(
        network, shared.learning_rate, shared.epochs, shared.batch, turns=shared.turns
    )
    case = with_inputs(StreamCase(row, training, options, len(tasks)), tasks)
    learner = make_learner(case)
    matrix, began = [], time.perf_counter()
    experiences = list(tasks.benchmark.train_stream)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="avalanche")
        torch.manual_seed(options.seed)
        for k, part in enumerate([experiences] if learner.whole else experiences, start=1):
            learner.strategy.train(part, eval_streams=[], reset_optimizer_state=True)
            learned = len(tasks) if learner.whole else k
            matrix.append([accuracy(learner.strategy.model, t) for t in parts[:learned]])
            print(options.stream, row, changes, options.seed, matrix[-1], flush=True)
    right = [a * len(t.labels) for a, t in zip(matrix[-1], parts, strict=True)]
    reports = getattr(learner.strategy, "merge_reports", [])
    trained = sum(r.expert_seconds for r in reports)
    return {
        "accuracy": sum(right) / sum(len(t.labels) for t in parts),
        "true": None if tasks.heads else true_accuracy(learner.strategy, tasks, parts, views),
        "matrix": matrix,
        "megabytes": learner.kept().bytes / 1e6,
        "examples": learner.kept().examples,
        "merge by expert": sum(r.merge_seconds for r in reports) / trained if trained else None,
        "picked": [r.picked for r in reports],
        "merges": [r.to_json() for r in reports],
        "seconds": time.perf_counter() - began,
    }


def true_accuracy(
    strategy: Any, tasks: Stream, held_out: list[Examples], views: str
) -> float | None:
    """Return the accuracy with statistics of the classes' own images in the final features."""
    memory = getattr(strategy, "features", None)
    if memory is None or not hasattr(strategy.model, "classifier"):
        return None
    found: list[torch.Tensor] = []
    layer = strategy.model.classifier
    hook = layer.register_forward_pre_hook(lambda _, x: found.append(x[0]))

    @torch.no_grad()
    def features(batches: Iterable[Any]) -> torch.Tensor:
        found.clear()
        for batch in batches:
            strategy.model.eval()(batch)
        return torch.cat(found)

    parts = [e.dataset for e in tasks.benchmark.train_stream]
    statistics = None
    for seen in (p.pool.parts[k] for k, p in enumerate(parts)):
        for view in range(1 + len(class_views(seen.inputs.batch(slice(0, 1)), views))):
            batches = seen.inputs.batches(_BATCH)
            x = features([x, *class_views(x, views)][view] for x in batches)
            new = measure_statistics(x, seen.labels)
            statistics = new if statistics is None else statistics.joined(new)
    assert statistics is not None, "a stream has tasks"
    discriminant = statistics.discriminant(None, memory.shrinkage)
    right = [discriminant(features(t.inputs.batches(_BATCH))) == t.labels for t in held_out]
    hook.remove()
    return float(torch.cat(right).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--streams", nargs="+", default=["five by two"], choices=list(STREAMS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--per-class", type=int, default=1000, help="training images of a class")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--choose", action="store_true", help="selection splits, no table")
    parser.add_argument("--moving", type=float, help="share of the layers that may move")
    parser.add_argument("--old-weight", type=float, help="weight of the network before")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    changes = {
        k: getattr(given, k) for k in ("moving", "old_weight") if getattr(given, k) is not None
    }
    split = "select" if given.choose else "test"
    for name in given.streams:
        size = {"images of a class": given.per_class, "epochs": given.epochs}
        table: dict[str, Any] = {**size, "orders": {}, "rows": {}}
        for seed in given.seeds:
            options = StreamOptions(
                "split-cifar10", arch="conv-32", epochs=given.epochs, turns=True, seed=seed,
                per_class=given.per_class, **STREAMS[name],
            )  # fmt: skip
            tasks = make_stream(options)
            title = f"{name.replace(' ', '-')}-{given.per_class}-{given.epochs}-{seed}"
            if given.choose:
                title = "-".join(["choice", title, *(f"{k}-{v}" for k, v in changes.items())])
            rows = Rows(given.work / f"stream-cifar-{title}.json")
            table["orders"][seed] = tasks.names
            for row in given.rows:
                rows.row(row, partial(learn, tasks, options, row, split, **changes))
                table["rows"].setdefault(row, []).append(rows.done[row])
                if not given.choose:
                    write(f"{name}, {given.per_class} images a class", table)


def write(name: str, table: dict[str, Any]) -> None:
    """Write the rows of a stream; its other rows, streams and sizes stay as they are."""
    file = RESULTS / "stream_cifar.json"
    stored = json.loads(file.read_text())["table"] if file.exists() else {}
    means = {row: summary(found) for row, found in table["rows"].items()}
    means = stored.get(name, {}).get("rows", {}) | means
    write_results("stream_cifar.json", {"table": {**stored, name: {**table, "rows": means}}})


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds."""

    def mean(key: str) -> float | None:
        values = [row[key] for row in found]
        return None if None in values else statistics.mean(values)

    names = ("accuracy", "true", "megabytes", "examples", "merge by expert", "seconds")
    return {**{name: mean(name) for name in names}, "seeds": [row["accuracy"] for row in found]}


if __name__ == "__main__":
    main()
