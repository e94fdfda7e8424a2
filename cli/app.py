"""Entry point of the ``geomerge`` command."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.commands import CommandGroup
from geomerge.cli.console import INTERRUPTED, LOG_JSON, USAGE_ERROR, fail, usage_sentence

__all__ = ["app", "main"]

app = typer.Typer(
    name="geomerge",
    cls=CommandGroup,
    help="Merge, sparsify and reconfigure networks along paths that preserve their functions.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


# A home folder that the shell leaves as it is, as in --out=~/run and --sketch b=~/b.safetensors.
_HOME = re.compile(r"^((?:--[a-z-]+=)?(?:[a-z]=)?)~(?=/|$)")


def _version(show: bool) -> None:
    if show:
        print(version("geomerge"))
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line; user errors end in one sentence and exit code 2."""
    words = [_HOME.sub(lambda found: found[1] + str(Path.home()), word) for word in sys.argv[1:]]
    try:
        sys.exit(app(words, prog_name="geomerge", standalone_mode=False))
    except USAGE_ERROR as error:
        sys.exit(fail(usage_sentence(error), log_json=LOG_JSON in sys.argv))
    except typer.Abort:  # outside of `watched`, which prints its own remedy
        fail("interrupted; run the same command again", log_json=LOG_JSON in sys.argv)
        sys.exit(INTERRUPTED)
