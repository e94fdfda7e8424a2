"""``geomerge merge-sharded``: merge of fine-tunes that are spread over several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import percent, plain_table, show_notes, tell_finished, watched
from geomerge.cli.flags import Flags
from geomerge.cli.options import Json, LogJson
from geomerge.expert_options import DataOptions
from geomerge.processes import first, start
from geomerge.sharded import ShardedOptions
from geomerge.sharded import merge_sharded as merge

__all__ = ["merge_sharded"]


def merge_sharded(
    networks: Annotated[
        list[Path],
        typer.Argument(help="two or more Hugging Face folders a, b, ... for classification"),
    ],
    options: ShardedOptions,
    data: Annotated[DataOptions, Flags(without=("sketch", "arch", "task", "device", "files"))],
    out: Annotated[Path, typer.Option(help="folder of the merged model", rich_help_panel="output")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="common ancestor, which tells what layers are heads",
            rich_help_panel="what to merge",
        ),
    ] = None,
    as_json: Json = False,
    log_json: LogJson = False,
) -> None:
    """Merge fine-tunes that are spread over the processes of torchrun."""
    start(data.device)
    with watched(log_json) as show:
        report = merge(networks, options, data, out=out, base=base, progress=show)
    if first():
        tell_finished(log_json, folder=str(out), before=False)
        print(json.dumps(report, indent=1)) if as_json else _show(report, out)


def _show(report: dict[str, Any], out: Path) -> None:
    """Print the accuracies of a sharded merge."""
    from rich.console import Console

    names = report["networks"]
    rows = [
        (f"{name} ({Path(one['task']).name})", percent(one.get("test")),
         percent(report["test"].get(name)))
        for name, one in names.items()
    ]  # fmt: skip
    table = plain_table(
        f"accuracy on the test splits, %; {report['head']} head",
        ("network", "own", "merged"), rows, lambda _: False, ("network",),
    )  # fmt: skip
    Console(highlight=False, soft_wrap=True).print(table)
    last = report["points"][-1]["step"]
    print(f"picked the point after {report['picked']} of {last} steps")
    print("data of the walk: inputs of the training splits, without labels")
    if report["test"]:
        print("data of the pick: selection splits, with labels")
    show_notes(report["notes"])
    print(f"written to {out} by {report['processes']} processes")
