"""Command line of a run: the options that differ from the defaults, without folders of files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomerge.options import callable_name, option_fields, read_names

__all__ = ["command_line"]


def command_line(command: str, subjects: Sequence[str | Path], options: Any, **more: Any) -> str:
    """Return the command line that makes a run again where its input files are.

    Args:
        command: Name of the command of ``geomerge``.
        subjects: Arguments of the command: files, or the name of a stream.
        options: Dataclass of options, or a tuple of several; defaults are left out.
        more: Options that the dataclass does not have, by name.
    """
    words = ["geomerge", command, *_short(subjects)]
    for part in options if isinstance(options, tuple) else (options,):
        words += _said(part)
    for name, value in more.items():
        words += _flag(name, value)
    return shlex.join(words)


def _short(files: Sequence[str | Path]) -> list[str]:
    """Return files with the fewest parent folders that make them distinct."""
    parts = [Path(file).parts for file in files]
    most = max(map(len, parts), default=1)
    for count in range(1, most + 1):
        names = [str(Path(*part[-count:])) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(file) for file in files]


def _said(options: Any) -> list[str]:
    words: list[str] = []
    for one in option_fields(type(options)):
        value = options
        for name in (*one.path, one.name):
            value = getattr(value, name)
        if not one.recorded or one.positional or value == one.default:
            continue
        if one.write is not None:
            value = tuple(one.write(value))
        elif one.read is read_names:  # names separated by commas
            value = ",".join(value)
        words += _flag(one.flag or one.name, value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, tuple):
        return [word for item in value for word in (flag, _word(name, item))]
    return [flag, _word(name, value)]


def _word(name: str, value: Any) -> str:
    if name == "sketch":  # b=FILE
        network, _, file = str(value).partition("=")
        return f"{network}={Path(file).name}"
    if callable(value):
        return callable_name(value)
    return Path(value).name if isinstance(value, Path) else str(value)
