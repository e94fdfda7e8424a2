"""``geomerge compare``: methods that make one network of two, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import finish, plain_table, show_notes, watched
from geomerge.cli.flags import names_in
from geomerge.cli.options import (
    Arch,
    DataRoot,
    Device,
    Download,
    LogJson,
    Normalisations,
    Output,
    ReportJson,
    Seed,
)

__all__ = ["compare"]

_WIDTH = 100  # columns of a terminal that the table takes at least


def compare(
    a: Annotated[Path, typer.Argument(help="The first network.")],
    b: Annotated[Path, typer.Argument(help="The second, of the same architecture.")],
    manifold: Annotated[
        list[str] | None,
        typer.Option(help="Task whose training inputs methods may use; a=NAME says whose."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/compare-A-B-HASH.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Rows of the table, such as slerp,regmean,joint-walk.")
    ] = None,
    skip: Annotated[
        str | None, typer.Option(help="Rows to leave out, such as joint-training,ewc.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(help="Samples that each trained row may see; default those of joint-walk."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The network that both were fine-tuned from.")
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(help="balanced (default), max-min, equal-drift, or a floor: 'a>=0.80'."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="b=NAME: task of a network, to choose and report on.")
    ] = None,
    sketch: Annotated[
        list[str] | None, typer.Option(help="b=FILE: the sketch of a network.")
    ] = None,
    head: Annotated[
        str,
        typer.Option(help="shared, offset (classes of b after a's) or separate (task known)."),
    ] = "shared",
    bn: Annotated[
        str | None,
        typer.Option(help="keep or re-estimate BatchNorm statistics; default by the inputs given."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each walk.")] = None,
    output: Output = "hellinger",
    seed: Seed = 0,
    arch: Arch = None,
    normalisation: Normalisations = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    as_json: ReportJson = False,
    log_json: LogJson = False,
) -> None:
    """Compare all methods that make one network of two."""
    from geomerge.comparison import CompareOptions
    from geomerge.merging import MergeOptions
    from geomerge.runs.compare import run_compare

    options = CompareOptions(
        merge=MergeOptions(
            manifold=tuple(manifold or ()),
            output=output,
            head=head,
            bn=bn,
            steps=steps,
            pick=pick,
            seed=seed,
            task=tuple(task or ()),
            sketch=tuple(sketch or ()),
            arch=arch,
            normalisation=tuple(normalisation or ()),
            data_root=data_root,
            download=download,
            device=device,
        ),
        only=tuple(names_in([only or ""])),
        skip=tuple(names_in([skip or ""])),
        budget=budget,
    )
    with watched(log_json) as show:
        folder, report, before = run_compare([a, b], options, base=base, out=out, on_progress=show)
    finish(folder, report, before, None if as_json else _show, log_json)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from geomerge.report.tables import DATA_MEANING, compare_table

    width = max(Console().width, _WIDTH)  # a narrower one would cut numbers off
    console = Console(highlight=False, soft_wrap=True, width=width)
    one, two = (report["networks"][side]["task"] for side in "ab")
    title = f"one network for {one} (a) and {two} (b), accuracy in %; {report['head']} head"
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
