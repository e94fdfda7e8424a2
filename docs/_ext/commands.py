"""The commands' reference, written by typer from the help of the commands themselves."""

from __future__ import annotations

import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["command_help", "setup"]


def command_help() -> str:
    """Return the help of all commands as Markdown, a section for each."""
    text = subprocess.run(
        [sys.executable, "-m", "typer", "geomerge.cli.app", "utils", "docs", "--name", "geomerge"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    # The page has a heading, and its table of contents lists the commands in full.
    return text[text.index("## ") :]


class _Commands(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(command_help(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive ``commands`` known."""
    app.add_directive("commands", _Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
