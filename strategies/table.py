"""Training and measurement of the methods of a stream table."""

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
from torch import nn

import geomerge
from geomerge.data.digest import split_digests, tensor_digest
from geomerge.data.task import Split
from geomerge.errors import NumericalError
from geomerge.evaluation.plausibility import within_guesses
from geomerge.io.files import canonical_json, sha256
from geomerge.monitor.progress import Progress
from geomerge.networks.network import check_device
from geomerge.options import replace_options
from geomerge.runs.command import command_line
from geomerge.strategies.examples import Examples
from geomerge.strategies.learner import Learner, Training
from geomerge.strategies.networks import accuracy, make_network
from geomerge.strategies.options import StreamOptions
from geomerge.strategies.registry import StreamCase, stream_rows
from geomerge.strategies.result import StreamResult, StreamRow, summary
from geomerge.strategies.streams import PROTOCOLS, Stream, make_stream, stream_of
from geomerge.walks.state import StateFile

__all__ = ["learn_row", "make_learner", "stream", "with_inputs"]

OnProgress = Callable[[Progress], None]


def stream(
    benchmark: Any = None,
    options: StreamOptions | None = None,
    *,
    network: nn.Module | None = None,
    work: str | Path | None = None,
    progress: OnProgress | None = None,
    **changes: Any,
) -> StreamResult:
    """Train methods on a stream of tasks and measure them after each experience.

    Args:
        benchmark: Name of a stream, or a benchmark of Avalanche with ``train_stream`` and
            ``test_stream``; None takes the stream that the options name.
        options: Options of the table; None is the usual ones.
        network: Network before the first experience, of which every method gets a copy; None makes
            the perceptron that the options name.
        work: Folder in which finished rows are stored. The same call after an interruption trains
            the missing rows only, with the same result. None stores nothing.
        progress: Function called with the progress.
        **changes: Options by name, such as ``only``, ``epochs``, ``ewc_lambda``.

    Returns:
        The table; methods that diverged are not in it, with the reason in its notes.

    Raises:
        GeomergeError: If data or the device is missing, an option cannot be used, or every method
            diverges.

    Example:
        >>> from geomerge.strategies import stream
        >>> result = stream(
        ...     "split-digits", only=("geodesic", "naive"), experiences=2, epochs=2, arch="mlp-16"
        ... )
        >>> [row.name for row in result.rows]
        ['geodesic', 'naive']
        >>> len(result["naive"].matrix)
        2
    """
    options = StreamOptions() if options is None else options
    named = benchmark is None or isinstance(benchmark, str)
    if isinstance(benchmark, str):
        changes["stream"] = benchmark
    options = replace_options(options, **changes)
    check_device(options.data.device)
    tasks = make_stream(options) if named else stream_of(benchmark, seed=options.seed)
    model = network
    if model is None:
        model = make_network(tasks, options.training.arch, options.seed)
    learned = options.training
    training = Training(
        model,
        learned.learning_rate,
        learned.epochs,
        learned.batch,
        options.data.device,
        learned.turns,
    )
    rows: list[StreamRow] = []
    diverged: dict[str, str] = {}
    for k, name in enumerate(options.rows):
        if progress is not None:
            progress(Progress(name, k, len(options.rows), {}, whole=True))
        stored = StateFile(None if work is None else Path(work) / name / "state")
        if not stored.state.values:
            case = StreamCase(name, training, options, len(tasks))
            try:
                stored.state.values = asdict(learn_row(case, tasks, progress=progress))
            except NumericalError as error:
                diverged[name] = str(error)
                continue
            stored.write()
        rows.append(StreamRow(**stored.state.values))
    if not rows:
        raise NumericalError(next(iter(diverged.values())))
    recipe, command = options.recipe(), command_line("stream", [options.stream], options)
    if not named or network is not None:
        recipe["stream"] |= {"stream": tasks.name, "objects": _digests(tasks, model)}
        command = "geomerge.strategies.stream(benchmark, network=network, ...)"
    return StreamResult(
        rows, diverged, _described(tasks, options, model, network is not None), recipe, command
    )


def make_learner(case: StreamCase) -> Learner:
    """Return the learner of a row, at the row's own learning rate."""
    rate = case.options.training.rate_of.get(case.row, case.training.rate)
    case = replace(case, training=replace(case.training, rate=rate))
    return stream_rows(case.options)[case.row].make(case)


def with_inputs(case: StreamCase, tasks: Stream) -> StreamCase:
    """Return a row with what a method may have to know of the stream's inputs."""
    raw = tasks.test[0].inputs.raw
    each = raw[0].nbytes if isinstance(raw, torch.Tensor) else 0
    return replace(case, shape=tasks.shape, input_bytes=each)


def learn_row(
    case: StreamCase,
    tasks: Stream,
    *,
    first: int | None = None,
    progress: OnProgress | None = None,
) -> StreamRow:
    """Train a method on a stream and measure it after each experience.

    Args:
        case: Row to make.
        tasks: Stream to learn.
        first: Number of experiences to learn, for choices; None is all of them.
        progress: Function called after each experience with the average accuracy.

    Raises:
        NumericalError: If its weights stop being finite.
    """
    learner, name = make_learner(with_inputs(case, tasks)), case.row
    matrix: list[list[float]] = []
    seconds = 0.0
    strategy, total = learner.strategy, first or len(tasks)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="avalanche")
        torch.manual_seed(case.options.seed)
        experiences = list(tasks.benchmark.train_stream[:total])
        for k, chunk in enumerate([experiences] if learner.whole else experiences):
            began = time.perf_counter()
            strategy.train(chunk, eval_streams=[], reset_optimizer_state=True)
            seconds += time.perf_counter() - began
            if not all(bool(torch.isfinite(p).all()) for p in strategy.model.parameters()):
                raise NumericalError(
                    f"the weights of {name} stopped being finite in experience {k + 1}; give it a "
                    f"smaller learning rate, `rates` {name}=0.01"
                )
            learned = total if learner.whole else k + 1
            matrix.append(_accuracies(strategy.model, tasks.test[:learned]))
            if progress is not None:
                progress(Progress(name, learned, total, {"average accuracy": fmean(matrix[-1])}))
    select = _accuracies(strategy.model, tasks.select[:total])
    merges = [r.to_json() for r in getattr(strategy, "merge_reports", [])]
    merging = sum(merge["merge_seconds"] for merge in merges)
    kept = learner.kept()
    passed = sum(learner.pace.examples) + learner.more_passes()
    return StreamRow(
        name=name,
        about=learner.about,
        matrix=matrix,
        **summary(matrix),
        select=fmean(select),
        kept={
            "megabytes": kept.bytes / 1e6,
            "examples": kept.examples,
            "labels": kept.labels,
        },
        learning_rate=case.options.training.rate_of.get(name, case.training.rate),
        epochs=case.training.epochs,
        passes=passed / sum(len(e.dataset) for e in experiences),
        seconds={"training": seconds - merging, "merging": merging},
        merges=merges,
        hardly_trained=learner.whole and _at_chance(fmean(select), tasks, total),
    )


def _at_chance(share: float, tasks: Stream, count: int) -> bool:
    """Return whether a mean accuracy on the selection splits of some experiences is by chance."""
    labels = [part.labels.cpu() for part in tasks.select[:count]]
    own = labels if tasks.heads else [torch.cat(labels)]  # of which the network chooses one
    guessed, total = sum(int(torch.bincount(part).max()) for part in own), sum(map(len, labels))
    return within_guesses(share, guessed / total, total)


def _accuracies(module: nn.Module, parts: Sequence[Examples]) -> list[float]:
    return [accuracy(module, part) for part in parts]


def _digests(tasks: Stream, model: nn.Module) -> dict[str, Any]:
    """Return digests of a benchmark's test examples and of a network, which identify both."""
    tests = [split_digests(Split(part.inputs, part.labels)) for part in tasks.test]
    weights = {name: tensor_digest(tensor) for name, tensor in model.state_dict().items()}
    return {"test": tests, "network": sha256(canonical_json(weights).encode())}


def _described(
    tasks: Stream, options: StreamOptions, model: nn.Module, own: bool
) -> dict[str, Any]:
    """Return the report's description of stream, network and options."""
    train = [len(e.dataset) for e in tasks.benchmark.train_stream]
    return {
        "geomerge": geomerge.__version__,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "avalanche-lib": version("avalanche-lib"),
        },
        "stream": {
            "name": tasks.name,
            "protocol": tasks.protocol,
            "meaning": PROTOCOLS[tasks.protocol],
            "seed": options.seed,
            "experiences": [
                {
                    "name": name,
                    "train": count,
                    "select": len(select.labels),
                    "test": len(test.labels),
                }
                for name, count, select, test in zip(
                    tasks.names, train, tasks.select, tasks.test, strict=True
                )
            ],
        },
        "network": {
            "architecture": type(model).__name__ if own else options.training.arch,
            "outputs": tasks.outputs,
            "heads": len(tasks) if tasks.heads else 1,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "options": options.recipe()["stream"],
        "settings": options.settings(),
    }
