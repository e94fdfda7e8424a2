"""``geomerge evaluate``: accuracies of a network."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from geomerge.cli.console import percent, show_notes, working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Json, NetworkFile
from geomerge.evaluation.evaluate import evaluate as measure
from geomerge.loading import ExpertOptions

__all__ = ["evaluate"]


def evaluate(
    network: NetworkFile,
    manifold: Annotated[
        list[str], typer.Option(help="task to measure; may be given several times")
    ],
    data: Annotated[ExpertOptions, Flags(without=("manifold",))],
    split: Annotated[str, typer.Option(metavar="[test|select]", help="split to measure")] = "test",
    as_json: Json = False,
) -> None:
    """Measure a network's accuracy on tasks."""
    with working(f"measuring {network}"):
        report = measure(network, manifold, split, data)
    if as_json:
        print(json.dumps(report, indent=1))
        return
    show_notes(report["notes"])
    if report["head"] != "shared":
        print(f"note: {report['head']} head, classes of each task where the merge put them")
    for row in report["tasks"]:
        print(f"{row['task']}: {percent(row['accuracy'])} % of {row['examples']} {split} examples")
