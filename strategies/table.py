"""Rows over a stream -> what was measured, as plain data."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import geomerge
from geomerge.errors import NumericalError
from geomerge.networks.network import check_device
from geomerge.runs.stream_options import StreamOptions
from geomerge.strategies import baselines
from geomerge.strategies.examples import Examples
from geomerge.strategies.networks import accuracy, make_network
from geomerge.strategies.rows import StreamRow, Training
from geomerge.strategies.streams import PROTOCOLS, Stream, make_stream
from geomerge.walks.state import StateFile

__all__ = ["make_row", "run_row", "run_table", "summary"]

OnExperience = Callable[[str, int, int, float], None]


def run_table(
    options: StreamOptions,
    on_experience: OnExperience | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Train every row of a table on a stream.

    Args:
        options: The stream and the rows.
        on_experience: Called after each experience with the row's name, the number of experiences
            learned, that of all, and the average accuracy.
        work: Where finished rows are kept: the same call with what an interrupted one left there
            trains the others only, and comes to the same. None keeps nothing.

    Returns:
        What ``report.json`` holds; rows that diverged stand apart, with the reason.

    Raises:
        GeomergeError: If data is missing, the device is, or every row diverges.
    """
    check_device(options.device)
    stream = make_stream(options)
    network = make_network(stream, options.hidden, options.seed)
    training = Training(
        network, options.learning_rate, options.epochs, options.batch, options.device
    )
    rows, diverged = [], {}
    for name in options.rows:
        kept = StateFile(None if work is None else work / name / "state")
        if not kept.state.values:
            row = make_row(name, training, options)
            try:
                kept.state.values = run_row(name, row, stream, options, on_experience)
            except NumericalError as error:
                diverged[name] = str(error)
                continue
            kept.write()
        rows.append(kept.state.values)
    if not rows:
        raise NumericalError(next(iter(diverged.values())))
    return {
        "geomerge": geomerge.__version__,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "avalanche-lib": version("avalanche-lib"),
        },
        "stream": _described(stream, options),
        "network": {
            "architecture": options.arch,
            "outputs": stream.outputs,
            "heads": len(stream) if stream.heads else 1,
            "parameters": sum(p.numel() for p in network.parameters()),
        },
        "options": options.recipe()["stream"],
        "settings": asdict(options.settings) if "geodesic" in options.rows else None,
        "rows": rows,
        "diverged": diverged,
    }


def make_row(name: str, training: Training, options: StreamOptions) -> StreamRow:
    """Return a row by its name.

    Args:
        name: One of the options' rows.
        training: How rows are trained.
        options: Strengths and sizes.
    """
    training = replace(training, rate=options.rate_of.get(name, training.rate))
    if name.startswith("replay-"):
        return baselines.replay(training, int(name.removeprefix("replay-")))
    makers: dict[str, Callable[[], StreamRow]] = {
        "geodesic": lambda: baselines.geodesic(training, options.settings, options.expert_epochs),
        "naive": lambda: baselines.naive(training),
        "running-mean": lambda: baselines.average(training, warm=True),
        "mean": lambda: baselines.average(training, warm=False),
        "ewc": lambda: baselines.ewc(training, options.ewc_lambda),
        "si": lambda: baselines.si(training, options.si_lambda),
        "lwf": lambda: baselines.lwf(training, options.lwf_alpha),
        "gem": lambda: baselines.gem(training, options.memory_examples[0], options.count),
        "joint": lambda: baselines.joint(training),
    }
    return makers[name]()


def run_row(
    name: str,
    row: StreamRow,
    stream: Stream,
    options: StreamOptions,
    on_experience: OnExperience | None = None,
    first: int | None = None,
) -> dict[str, Any]:
    """Train a row on a stream and measure it after each experience.

    Args:
        name: Its name.
        row: The row.
        stream: The stream.
        options: For the seed of the order of examples and of draws.
        on_experience: As of :func:`run_table`.
        first: Only the first so many experiences, for choices; None is all of them.

    Returns:
        What the report holds of it.

    Raises:
        NumericalError: If its weights stop being finite.
    """
    matrix: list[list[float]] = []
    seconds = 0.0
    strategy, total = row.strategy, first or len(stream)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="avalanche")
        torch.manual_seed(options.seed)
        experiences = list(stream.benchmark.train_stream[:total])
        for k, chunk in enumerate([experiences] if row.whole else experiences):
            began = time.perf_counter()
            strategy.train(chunk, eval_streams=[], reset_optimizer_state=True)
            seconds += time.perf_counter() - began
            if not all(bool(torch.isfinite(p).all()) for p in strategy.model.parameters()):
                raise NumericalError(
                    f"the weights of {name} stopped being finite in experience {k + 1}; give it a "
                    f"smaller learning rate, --rate {name}=0.01"
                )
            learned = total if row.whole else k + 1
            matrix.append(_accuracies(strategy.model, stream.test[:learned]))
            if on_experience is not None:
                on_experience(name, learned, total, fmean(matrix[-1]))
    merges = [r.to_json() for r in getattr(strategy, "merge_reports", [])]
    merging = sum(merge["merge_seconds"] for merge in merges)
    kept = row.kept()
    passed = sum(row.pace.examples) + row.beside()
    return {
        "name": name,
        "about": row.about,
        "matrix": matrix,
        **summary(matrix),
        "select": fmean(_accuracies(strategy.model, stream.select[:total])),
        "kept": {
            "megabytes": kept.bytes / 1e6,
            "examples": kept.examples,
            "labels": kept.labels,
        },
        "learning_rate": options.rate_of.get(name, options.learning_rate),
        "epochs": options.epochs,
        "passes": passed / sum(len(e.dataset) for e in experiences),
        "seconds": {"training": seconds - merging, "merging": merging},
        "merges": merges,
    }


def summary(matrix: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the usual numbers of a matrix of accuracies.

    Args:
        matrix: Row t holds the accuracies on all tasks learned by then; one row alone is of a
            network that learned them at once.

    Returns:
        ``average``, after each experience; ``accuracy``, the last of them; ``backward_transfer``,
        the mean change since each task was learned; ``forgetting``, the mean loss since it was
        best. The last task is not among these two; None where there is nothing to compare.
    """
    last = matrix[-1]
    old = range(len(last) - 1) if len(matrix) > 1 else range(0)
    best = [max(row[i] for row in matrix[i:-1]) for i in old]
    return {
        "average": [fmean(row) for row in matrix],
        "accuracy": fmean(last),
        "backward_transfer": fmean(last[i] - matrix[i][i] for i in old) if old else None,
        "forgetting": fmean(best[i] - last[i] for i in old) if old else None,
    }


def _accuracies(module: torch.nn.Module, parts: Sequence[Examples]) -> list[float]:
    return [accuracy(module, part) for part in parts]


def _described(stream: Stream, options: StreamOptions) -> dict[str, Any]:
    train = [len(e.dataset) for e in stream.benchmark.train_stream]
    return {
        "name": options.stream,
        "protocol": options.protocol,
        "meaning": PROTOCOLS[options.protocol],
        "seed": options.seed,
        "experiences": [
            {"name": name, "train": count, "select": len(select.labels), "test": len(test.labels)}
            for name, count, select, test in zip(
                stream.names, train, stream.select, stream.test, strict=True
            )
        ],
    }
