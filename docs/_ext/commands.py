"""The reference of the commands: the help that they print."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.testing import CliRunner

from geomerge.cli.app import app
from geomerge.cli.commands import COMMANDS

__all__ = ["command_help", "setup"]


def command_help() -> str:
    """Return the help of all commands as Markdown, a section for each."""
    return "\n".join(f"## `geomerge {name}`\n\n```text\n{_help_of(name)}```\n" for name in COMMANDS)


def _help_of(name: str) -> str:
    return (
        CliRunner()
        .invoke(app, [name, "--help"], prog_name="geomerge", env={"COLUMNS": "80"})
        .output
    )


class _Commands(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(command_help(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive ``commands`` known."""
    app.add_directive("commands", _Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
