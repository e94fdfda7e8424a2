"""``geomerge stream``: continual learning of a stream of tasks by several methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, plain_table, watched
from geomerge.cli.options import LogJson, ReportJson
from geomerge.options import parse_size, replace_options
from geomerge.strategies.options import StreamOptions

__all__ = ["stream"]


def stream(
    options: StreamOptions,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; default runs/NAME-HASH")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(hidden=True, help="earlier spelling of --memory-mb, such as 20MB")
    ] = None,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Compare methods of continual learning on a stream."""
    if memory_limit is not None:
        options = replace_options(options, memory_mb=parse_size(memory_limit) / 1e6)
    from geomerge.monitor.progress import Progress
    from geomerge.runs.command import command_line
    from geomerge.runs.stream import run_stream

    command = command_line("stream", [options.stream], options)
    with watched(log_json) as show:

        def learn(work: Path) -> dict[str, Any]:
            if show is not None:  # takes about ten seconds
                show(Progress("loading Avalanche", 0, len(options.rows), {}, whole=True))
            from geomerge.strategies import stream

            return stream(options=options, work=work, progress=show).to_json()

        folder, report, before = run_stream(
            options.stream, options.recipe(), command, learn, out, options.data.device
        )
    finish(folder, report, before, None if as_json else _show, log_json)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from geomerge.report.tables import stream_table

    console = Console(highlight=False, soft_wrap=True)
    stream, network = report["stream"], report["network"]
    count = len(stream["experiences"])
    title = f"{stream['name']}, {count} tasks, {network['architecture']}, test splits"
    headings, rows = stream_table(report)
    first = rows[0][0]
    console.print(plain_table(title, headings, rows, lambda name: name == first))
    console.print(
        f"{stream['meaning']}; acc, BWT, forget: average accuracy after the last task, mean change "
        "of each since it was learned, mean loss since it was best; MB, inputs, labels: of what is "
        "kept between tasks; passes in epochs, train and merge in seconds"
    )
    for row in report["rows"]:
        console.print(f"{row['name']}: {row['about']}")
    for method, why in report.get("diverged", {}).items():
        console.print(f"{method} is not in the table: {why}", style="bold")
