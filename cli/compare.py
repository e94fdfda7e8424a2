"""``geomerge compare``: comparison of methods for merging two networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, plain_table, show_notes, watched
from geomerge.cli.flags import Flags
from geomerge.cli.options import LogJson, ReportJson
from geomerge.comparison import CompareOptions
from geomerge.evaluation.measures import unit
from geomerge.expert_options import DataOptions
from geomerge.runs.compare import run_compare

__all__ = ["compare"]

_WIDTH = 106  # width of the table
# A comparison sets all other options of its walks.
_FLAGS = (
    "only", "skip", "max_samples", "output", "head", "bn", "align", "steps", "pick", "seed",
)  # fmt: skip


def compare(
    a: Annotated[Path, typer.Argument(help="first network")],
    b: Annotated[Path, typer.Argument(help="second network, of the same architecture")],
    data: DataOptions,
    options: Annotated[CompareOptions, Flags(only=_FLAGS)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of the run; default runs/compare-A-B-HASH", rich_help_panel="output"
        ),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="common ancestor that both networks were fine-tuned from")
    ] = None,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Compare methods for merging two networks."""
    with watched(log_json) as show:
        folder, report, before = run_compare(
            [a, b], options, data, base=base, out=out, progress=show
        )
    finish(folder, report, before, None if as_json else _show, log_json)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from geomerge.report.tables import DATA_MEANING, compare_table

    width = max(Console().width, _WIDTH)  # narrower tables would truncate numbers
    console = Console(highlight=False, soft_wrap=True, width=width)
    one, two = (report["networks"][side]["task"] for side in "ab")
    what = unit(n.get("measure", "accuracy") for n in report["networks"].values())
    title = f"one network for {one} (a) and {two} (b), {what}; {report['head']} head"
    headings, rows = compare_table(report)
    table = plain_table(
        title, headings, rows, lambda name: name.endswith("-walk"), words=("method", "chosen")
    )
    console.print(table)
    console.print(
        f"picked by {report['pick']} on the selection splits, reported on the test splits; trained "
        f"rows: {report['budget']:,} samples"
    )
    console.print(DATA_MEANING)
    for row in report["rows"]:
        if row["reason"] is not None:
            console.print(f"{row['name']}: {row['reason']}")
    show_notes(report["notes"])
