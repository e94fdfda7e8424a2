"""``geomerge stream``: learn tasks one after the other, with geomerge and with others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, plain_table, watched
from geomerge.cli.flags import names_in
from geomerge.cli.options import DataRoot, Device, Download, LogJson, ReportJson, Seed

__all__ = ["stream"]


def stream(
    name: Annotated[
        str,
        typer.Argument(
            help="permuted-mnist, rotated-mnist, split-mnist, split-fmnist, mnist-fashion, "
            "split-digits or permuted-digits."
        ),
    ],
    scenario: Annotated[
        str | None,
        typer.Option(help="Of a split stream: class (default), domain or task incremental."),
    ] = None,
    experiences: Annotated[int | None, typer.Option(help="How many tasks.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Rows of the table, such as geodesic,ewc,replay-200.")
    ] = None,
    skip: Annotated[str | None, typer.Option(help="Rows to leave out, such as gem,joint.")] = None,
    epochs: Annotated[
        int, typer.Option(help="Passes over each task's examples, for every row; walks included.")
    ] = 5,
    batch: Annotated[int, typer.Option(help="Examples of a step.")] = 128,
    learning_rate: Annotated[
        float, typer.Option(help="Of the first step of each task; it falls to zero.")
    ] = 0.05,
    rate: Annotated[
        list[str] | None, typer.Option(help="ROW=RATE for a row that needs another.")
    ] = None,
    arch: Annotated[
        str, typer.Option(help="mlp-100: two hidden layers of 100 units; mlp-256, mlp-400, ...")
    ] = "mlp-100",
    memory_examples: Annotated[
        list[int] | None,
        typer.Option(help="Kept by replay, a row for each; default 200 and 500, GEM the first."),
    ] = None,
    ewc_lambda: Annotated[float, typer.Option(help="Strength of EWC.")] = 1000.0,
    si_lambda: Annotated[float, typer.Option(help="Strength of SI.")] = 100.0,
    lwf_alpha: Annotated[float, typer.Option(help="Strength of LwF.")] = 1.0,
    walk_epochs: Annotated[
        int | None, typer.Option(help="How many of the epochs are the walk's; default 1.")
    ] = None,
    walk_rate: Annotated[float | None, typer.Option(help="Learning rate of the walk.")] = None,
    metric: Annotated[
        str, typer.Option(help="Of the walk: kronecker, or euclidean (no sketches are kept).")
    ] = "kronecker",
    labels: Annotated[
        bool, typer.Option("--labels", help="Let the walk use the new task's labels.")
    ] = False,
    examples: Annotated[
        int, typer.Option(help="Unlabelled inputs that geomerge keeps of each task.")
    ] = 0,
    damping: Annotated[
        float | None, typer.Option(help="mu of the walk; default 0.1, more learns more.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="How far any earlier task's function may change.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Most that geomerge keeps of all tasks, such as 20MB.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/NAME-HASH.")
    ] = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Learn a stream of tasks, with baselines."""
    from geomerge.monitor.progress import Progress
    from geomerge.runs.command import command_line
    from geomerge.runs.stream import run_stream
    from geomerge.runs.stream_options import StreamOptions

    options = StreamOptions(
        stream=name,
        scenario=scenario,
        experiences=experiences,
        only=tuple(names_in([only or ""])),
        skip=tuple(names_in([skip or ""])),
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        rates=tuple(rate or ()),
        arch=arch,
        memory_examples=tuple(memory_examples or (200, 500)),
        ewc_lambda=ewc_lambda,
        si_lambda=si_lambda,
        lwf_alpha=lwf_alpha,
        walk_epochs=walk_epochs,
        walk_rate=walk_rate,
        metric=metric,
        labels=labels,
        examples=examples,
        damping=damping,
        budget=budget,
        memory_limit=memory_limit,
        seed=seed,
        data_root=data_root,
        download=download,
        device=device,
    )

    command = command_line("stream", [name], options)
    with watched(log_json) as show:

        def at(part: str, before: int) -> None:
            if show is not None:
                show(Progress(part, before, len(options.rows), {}, whole=True))

        def learned(row: str, done: int, count: int, value: float) -> None:
            if show is not None:
                at(row, options.rows.index(row))
                show(Progress(row, done, count, {"average accuracy": value}))

        def learn(work: Path) -> dict[str, Any]:
            at("loading Avalanche", 0)  # which takes some ten seconds
            found: dict[str, Any] = _run_table()(options, learned, work)
            return found

        folder, report, before = run_stream(name, options.recipe(), command, learn, out, device)
    finish(folder, report, before, None if as_json else _show, log_json)


def _run_table() -> Any:
    """Import what needs Avalanche."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that Avalanche imports and nobody here uses
        from geomerge.strategies.table import run_table
    return run_table


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from geomerge.report.tables import stream_table

    console = Console(highlight=False, soft_wrap=True)
    stream, network = report["stream"], report["network"]
    count = len(stream["experiences"])
    title = f"{stream['name']}, {count} tasks, {network['architecture']}, test splits"
    headings, rows = stream_table(report)
    console.print(plain_table(title, headings, rows, lambda name: name == "geodesic"))
    console.print(
        f"{stream['meaning']}; acc, BWT, forget: average accuracy after the last task, mean change "
        "of each since it was learned, mean loss since it was best; MB, inputs, labels: of what is "
        "kept between tasks; passes in epochs, train and merge in seconds"
    )
    for row in report["rows"]:
        console.print(f"{row['name']}: {row['about']}")
    for method, why in report.get("diverged", {}).items():
        console.print(f"{method} is not in the table: {why}", style="bold")
