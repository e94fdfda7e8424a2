"""Registry of commands, which are imported on first use, and layout of the help."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from geomerge.cli.flags import command

__all__ = ["COMMANDS", "CommandGroup", "Entry", "load_command"]


class Entry(NamedTuple):
    """Entry of a command in the help of ``geomerge``.

    Attributes:
        group: Heading of the command's group.
        summary: First sentence of the command's help.
    """

    group: str
    summary: str


# A command is the function of the same name in the module of the same name, with underscores.
COMMANDS = {
    "merge": Entry("merge networks", "Merge networks along a path that preserves their functions."),
    "merge-sharded": Entry(
        "merge networks", "Merge fine-tunes that are spread over the processes of torchrun."
    ),
    "check": Entry("merge networks", "Check the inputs of a merge, and estimate its cost."),
    "compare": Entry("merge networks", "Compare methods for merging two networks."),
    "sketch": Entry("merge networks", "Measure a network's sketch, for merges without its data."),
    "inspect": Entry(
        "make networks smaller", "Measure the damage of removing layers, units and weights."
    ),
    "sparsify": Entry(
        "make networks smaller", "Remove weights or units while preserving the function."
    ),
    "reconfigure": Entry("make networks smaller", "Remove and restore units by a plan."),
    "stream": Entry(
        "learn one task after another", "Compare methods of continual learning on a stream."
    ),
    "train": Entry("networks and runs", "Train a network for a task."),
    "evaluate": Entry(
        "networks and runs", "Measure accuracies or losses of networks on tasks, in one table."
    ),
    "path": Entry("networks and runs", "Write a network on a finished run's path to a file."),
    "verify": Entry("networks and runs", "Check the certificate of a finished merge."),
    "report": Entry("networks and runs", "Write the page of a finished run again."),
    "doctor": Entry(
        "networks and runs", "Show versions, solvers, devices and data, for bug reports."
    ),
    "demo": Entry("networks and runs", "Train and merge two small networks in a minute."),
}


_LAST = ("output", "machine", "other options")  # groups of options at the end of a help


class GroupedCommand(TyperCommand):
    """Command whose help lists options by group."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the command's name in the usage line."""
        return ["[OPTIONS]", *map(_argument, self._arguments(ctx))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options by group."""
        groups = {"arguments": [(_argument(one), one.help) for one in self._arguments(ctx)]}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if parameter.param_type_name == "option" and row is not None:
                group = getattr(parameter, "rich_help_panel", None) or "other options"
                groups.setdefault(group, []).append(row)
        order = sorted(groups, key=lambda group: _LAST.index(group) if group in _LAST else -1)
        _write_groups(formatter, {group: groups[group] for group in order})

    def _arguments(self, ctx: Any) -> list[Any]:
        return [one for one in self.get_params(ctx) if one.param_type_name == "argument"]


def _argument(parameter: Any) -> str:
    return f"{parameter.name.upper()}{'...' if parameter.nargs == -1 else ''}"


class CommandGroup(TyperGroup):
    """Root command, whose help and completion import no command's module."""

    _summaries_only = False

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = dict.fromkeys(COMMANDS)  # names for typer's suggestions

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command's module and return the command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        if self._summaries_only:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name].summary)
        return load_command(cmd_name)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the commands and flags that complete a word."""
        self._summaries_only = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._summaries_only = False

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write all commands by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, entry in COMMANDS.items():
            groups.setdefault(entry.group, []).append((name, entry.summary))
        _write_groups(formatter, groups)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write commands, then options."""
        self.format_commands(ctx, formatter)
        rows = (parameter.get_help_record(ctx) for parameter in self.get_params(ctx))
        _write_groups(formatter, {"options": [row for row in rows if row is not None]})


def load_command(name: str) -> Any:
    """Import the module of a command and return the command for typer."""
    own = name.replace("-", "_")
    function = getattr(import_module(f"geomerge.cli.{own}"), own)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, cls=GroupedCommand)(command(function))
    return typer.main.get_command(alone)


def _write_groups(formatter: Any, groups: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write rows of names and texts by group."""
    for group, rows in groups.items():
        if rows:
            with formatter.section(group.capitalize()):
                formatter.write_dl([(name, _sentence(text)) for name, text in rows])


def _sentence(text: str) -> str:
    """Capitalise a text that begins with a word."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,;:]", text) else text
