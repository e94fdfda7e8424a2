"""``geomerge evaluate``: accuracies, or losses and perplexities, of networks on tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import percent, plain_table, show_notes, working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Json
from geomerge.evaluation.evaluate import evaluate as measure
from geomerge.evaluation.measures import unit
from geomerge.expert_options import ExpertOptions

__all__ = ["evaluate"]


def evaluate(
    networks: Annotated[
        list[Path],
        typer.Argument(help="networks: files of weights, Hugging Face folders, or run folders"),
    ],
    manifold: Annotated[list[str], typer.Option(help="task to measure on; repeatable")],
    data: Annotated[ExpertOptions, Flags(without=("manifold",))],
    split: Annotated[str, typer.Option(metavar="[test|select]", help="split to measure")] = "test",
    as_json: Json = False,
) -> None:
    """Measure accuracies or losses of networks on tasks, in one table."""
    reports = []
    for network in networks:
        with working(f"measuring {network}"):
            reports.append(measure(network, manifold, split, data))
    if as_json:
        found = reports[0] if len(reports) == 1 else {"networks": reports}
        print(json.dumps(found, indent=1))
        return
    for network, report in zip(networks, reports, strict=True):
        own = f"{network}: " if len(reports) > 1 else ""
        show_notes(f"{own}{note}" for note in report["notes"])
        if report["head"] != "shared":
            print(
                f"note: {own}{report['head']} head, classes of each task where the merge put them"
            )
    if len(reports) > 1:
        _show_table(networks, reports, split)
        return
    for row in reports[0]["tasks"]:
        if row["measure"] == "loss":
            print(
                f"{row['task']}: loss {row['loss']:.4f}, perplexity {row['perplexity']:.2f}, of "
                f"{row['tokens']} tokens in {row['examples']} {split} texts"
            )
        else:
            print(
                f"{row['task']}: {percent(row['accuracy'])} % of {row['examples']} {split} examples"
            )


def _show_table(networks: Sequence[Path], reports: Sequence[Mapping[str, Any]], split: str) -> None:
    from rich.console import Console

    rows = [
        [str(network), *(_cell(row) for row in report["tasks"])]
        for network, report in zip(networks, reports, strict=True)
    ]
    tasks = reports[0]["tasks"]
    headings = ["network", *(row["task"] for row in tasks)]
    counts = ", ".join(f"{row['examples']} of {row['task']}" for row in tasks)
    table = plain_table(
        f"{unit(row['measure'] for row in tasks)} on the {split} split",
        headings,
        rows,
        lambda _: False,
        ("network",),
    )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"examples: {counts}")


def _cell(row: Mapping[str, Any]) -> str:
    return percent(row["accuracy"]) if "accuracy" in row else f"{row['perplexity']:.2f}"
