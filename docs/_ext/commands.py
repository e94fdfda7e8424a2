"""The reference of the commands: the help that they print."""

from __future__ import annotations

import os
import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from geomerge.cli.commands import COMMANDS

__all__ = ["command_help", "setup"]


def command_help() -> str:
    """Return the help of all commands as Markdown, a section for each."""
    return "\n".join(f"## `geomerge {name}`\n\n```text\n{_help_of(name)}```\n" for name in COMMANDS)


def _help_of(name: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "geomerge", name, "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"},
    ).stdout  # fmt: skip


class _Commands(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(command_help(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive ``commands`` known."""
    app.add_directive("commands", _Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
