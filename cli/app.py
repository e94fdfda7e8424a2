"""The ``geomerge`` command."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from geomerge.cli import (
    check,
    compare,
    demo,
    evaluate,
    inspect,
    merge,
    path,
    reconfigure,
    report,
    sketch,
    sparsify,
    stream,
    train,
    verify,
)
from geomerge.cli.console import fail
from geomerge.cli.options import LOG_JSON

__all__ = ["app", "main"]

app = typer.Typer(
    name="geomerge",
    help="Merge, sparsify and reconfigure trained networks along paths that keep their function.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("check")(check.check)
app.command("merge")(merge.merge)
app.command("compare")(compare.compare)
app.command("sparsify")(sparsify.sparsify)
app.command("reconfigure")(reconfigure.reconfigure)
app.command("sketch")(sketch.sketch)
app.command("stream")(stream.stream)
app.command("evaluate")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)
app.command("path")(path.path)
app.command("verify")(verify.verify)
app.command("report")(report.report)
app.command("demo")(demo.demo)


def _version(show: bool) -> None:
    if show:
        print(version("geomerge"))
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    from geomerge.errors import GeomergeError

    try:
        app()
    except GeomergeError as error:
        sys.exit(fail(str(error), log_json=LOG_JSON in sys.argv))
    except OSError as error:  # a full disk, a folder taken away while we worked
        what = f"{(error.strerror or str(error)).lower()} ({error.filename or 'no file named'})"
        message = f"{what}; make room or check the folder, and run the command again"
        sys.exit(fail(message, log_json=LOG_JSON in sys.argv))
