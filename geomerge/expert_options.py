"""Options of experts: architecture, task, inputs, sketch, normalisation, reading of files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from geomerge.data import ExampleOptions, Task, split_normalisations, task_of
from geomerge.data.options import PlaceOptions
from geomerge.errors import OptionError
from geomerge.expert_like import Arch
from geomerge.io.reading import FileOptions
from geomerge.options import at_least, check_options, option, piece

__all__ = ["DataOptions", "ExpertOptions", "ReadingOptions"]


@dataclass(frozen=True)
class ReadingOptions:
    """Options of reading files of networks and of data."""

    files: FileOptions = piece(FileOptions)
    examples: ExampleOptions = piece(ExampleOptions)


@dataclass(frozen=True, kw_only=True)
class _NormalisedOptions(PlaceOptions):
    """Options of any number of networks' data."""

    normalisation: tuple[str, ...] = option(
        (), "TASK=MEAN/STD instead of the usual normalisation", group="data"
    )
    reading: ReadingOptions = piece(ReadingOptions)

    def __post_init__(self) -> None:
        """Refuse texts that cannot be read.

        Raises:
            OptionError: If a text cannot be read.
        """
        check_options(self)
        split_normalisations(self.normalisation)


@dataclass(frozen=True)
class DataOptions(_NormalisedOptions):
    """Options of the data of several networks, called a, b, c, ..."""

    manifold: tuple[str | Task, ...] = option(
        (), "task whose inputs the walk may use; a=NAME assigns it to network a", group="data"
    )
    task: tuple[str, ...] = option(
        (), "b=NAME: task of a network, for the pick and the report", group="data"
    )
    sketch: tuple[str, ...] = option((), "b=FILE: sketch of a network", group="data")
    arch: Arch = option(
        None,
        "architecture of all networks, where the files do not record it",
        group="what to merge",
    )
    max_inputs: int | None = option(
        None, "number of inputs of each task that the walk may use; default all", group="data",
        check=at_least(1), flag="inputs", recorded="given",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse texts that cannot be read.

        Raises:
            OptionError: If a text cannot be read.
        """
        given = self.manifold
        entries = list(given) if isinstance(given, (tuple, list)) else [given]
        object.__setattr__(self, "manifold", _tasks_of(entries))
        super().__post_init__()
        self.manifolds()
        self.by_network("sketch")
        self.by_network("task")

    def manifolds(self) -> tuple[dict[str, str | Task], list[str | Task]]:
        """Split ``manifold`` into the entries that name a network and the others, in order."""
        given: dict[str, str | Task] = {}
        rest: list[str | Task] = []
        for entry in self.manifold:
            match = re.match(r"([a-z])=", entry) if isinstance(entry, str) else None
            if match is None or not isinstance(entry, str):
                rest.append(entry)
                continue
            name, task = match[1], entry[2:]
            if name in given:
                raise OptionError(
                    f"two manifolds for {name}, {given[name]!r} and {task!r}; name one"
                )
            given[name] = task
        return given, rest

    def by_network(self, option: str) -> dict[str, str]:
        """Return the texts of ``sketch`` or ``task`` by the name of a network.

        Raises:
            OptionError: If one names no network, or two name the same.
        """
        texts: dict[str, str] = {}
        for text in getattr(self, option):
            match = re.match(r"([a-z])=(.+)", text)
            if match is None or match[1] in texts:
                raise OptionError(
                    f"expected one `{option}` for each network, such as b={text}, got {text!r}"
                )
            texts[match[1]] = match[2]
        return texts


@dataclass(frozen=True)
class ExpertOptions(_NormalisedOptions):
    """Options of one network's architecture and data."""

    manifold: str | Task | None = option(
        None, "task whose inputs keep the function; default the network's own", group="data"
    )
    arch: Arch = option(None, "architecture, where the file does not record it", group="data")


def _tasks_of(entries: Sequence[Any]) -> tuple[str | Task, ...]:
    """Return names as they are and a task of every other thing, each of another name."""
    found: list[str | Task] = []
    for entry in entries:
        made = entry if isinstance(entry, (str, Task)) else task_of(entry)
        names = [one if isinstance(one, str) else one.name for one in found]
        if isinstance(made, Task) and made is not entry and made.name in names:
            made = replace(made, name=f"{made.name}-{len(found) + 1}")
        found.append(made)
    return tuple(found)
