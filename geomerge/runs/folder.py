"""Run folders: identity of a run by its recipe, and the protocol that writes its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.certificate.stored_run import BASE
from geomerge.data import Task
from geomerge.data.digest import file_digests
from geomerge.errors import RunError, first_line
from geomerge.expert import Expert, folder_sketch
from geomerge.expert_options import DataOptions, ExpertOptions
from geomerge.io.checkpoint import Checkpoint
from geomerge.io.files import canonical_json, file_sha256, parse_json, sha256, write_bytes
from geomerge.io.folders import resumable_folder
from geomerge.loading import NAMES
from geomerge.runs.kinds import kind_of, write_page

__all__ = ["RunFolder", "data_of_recipe", "input_digests", "read_json", "sketch_files"]


class RunFolder:
    """Folder of one run: used again where it is finished, else written whole or not at all.

    Args:
        out: Folder of the run. None takes ``runs/STEM-HASH``.
        stem: Start of the folder's name where it is not given.
        recipe: Everything that decides the result, as JSON.
        command: Command line that makes the run.

    Attributes:
        path: Path of the folder.
        report: Content of ``report.json``; None until the run is finished.
        before: Whether the run was finished before, so that nothing is left to do.

    Raises:
        RunError: If the folder holds a damaged run or one of another recipe.
    """

    def __init__(
        self, out: str | Path | None, stem: str, recipe: dict[str, Any], command: str
    ) -> None:
        digest = sha256(canonical_json(recipe).encode())
        self.path = Path(out) if out else Path("runs") / f"{stem}-{digest[:8]}"
        self.report = _finished(self.path, recipe)
        self.before = self.report is not None
        self._recipe = recipe
        self._command = command

    @property
    def outcome(self) -> tuple[Path, dict[str, Any], bool]:
        """The folder, its report, and whether the run had been finished before."""
        assert self.report is not None
        return self.path, self.report, self.before

    @contextmanager
    def unfinished(self, device: str, optional: Sequence[str] = ()) -> Iterator[Path]:
        """Open a folder for the files of the run, that of an interrupted call if there is one.

        Args:
            device: Device that computes; another one would give other bits.
            optional: Names of files that are written on demand only. Those of an interrupted call,
                whose demands may have been others, are removed.

        Yields:
            The folder. Its subfolder ``work`` holds the state for resuming; it is removed at the
            end.

        Raises:
            RunError: If the folder cannot be written, or another process works on it.
        """
        made_with = {
            "geomerge": geomerge.__version__, "torch": torch.__version__, "device": device,
        }  # fmt: skip
        with resumable_folder(self.path, {**self._recipe, "made_with": made_with}) as folder:
            for name in optional:
                (folder / name).unlink(missing_ok=True)
            yield folder

    def finish(
        self,
        folder: Path,
        report: dict[str, Any],
        *,
        tasks: Mapping[str, Task | None] | None = None,
        certify: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Write the last files of a run: pictures, card, table, recipe, report, page.

        Args:
            folder: Unfinished folder of the run, with its networks and its path.
            report: Content of ``report.json``; the command and the certificate are added.
            tasks: Task of each network for the card, None where it has none.
            certify: Function of the report that returns the certificate of the other files. None
                writes none.
        """
        report["command"] = self._command
        kind = kind_of(report)
        for name, draw in kind.pictures.items():
            draw(report, folder / name)
        if kind.card is not None:
            kind.card(folder, report, tasks or {})
        if kind.table is not None:
            write_bytes(folder / "table.md", kind.table(report).encode())
        _write_json(folder / "recipe.json", self._recipe)
        if certify is not None:
            report["certificate"] = certify(report)
        _write_json(folder / "report.json", report)
        write_page(folder, report)
        self.report = report


def input_digests(
    networks: Sequence[Checkpoint], data: DataOptions, base: Expert | None = None
) -> dict[str, str]:
    """Return the SHA-256 of the files of networks, their sketches and their common ancestor."""
    digests = {name: c.digest for name, c in zip(NAMES, networks, strict=False)}
    for name, file in sketch_files(networks, data).items():
        if Path(file).is_file():
            digests[f"sketch of {name}"] = file_sha256(Path(file))
    if base is not None:
        digests[BASE] = base.digest
    return digests


def data_of_recipe(
    networks: Sequence[Checkpoint], data: DataOptions | ExpertOptions
) -> dict[str, dict[str, str]]:
    """Return the entry of a recipe on files of data; none where tasks are named otherwise.

    Args:
        networks: Networks, which may record their tasks. Those that only sketches record are left
            out.
        data: Options that name tasks.
    """
    if isinstance(data, DataOptions):
        given, rest = data.manifolds()
        own = data.by_network("task")
        named: list[Any] = [*given.values(), *rest, *own.values()]
    else:
        named, own = [data.manifold], {}
    recorded_tasks = zip(NAMES, networks, strict=False)
    named += [network.meta.get("task") for name, network in recorded_tasks if name not in own]
    found = file_digests(dict.fromkeys(name for name in named if isinstance(name, str)))
    return {"data": found} if found else {}


def sketch_files(networks: Sequence[Checkpoint], data: DataOptions) -> dict[str, str]:
    """Return the files of sketches by the names of networks: named, or in their model folders."""
    found = {name: folder_sketch(c.source) for name, c in zip(NAMES, networks, strict=False)}
    own = {name: str(file) for name, file in found.items() if file is not None}
    return {**own, **data.by_network("sketch")}


def _finished(folder: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return the report of a finished run of the same recipe, None where there is no run."""
    if not (folder / "recipe.json").is_file():
        return None
    old, report = read_json(folder / "recipe.json"), read_json(folder / "report.json")
    if old != recipe:
        raise RunError(
            f"{folder} holds a finished run of another recipe; choose another `folder` or remove it"
        )
    shutil.rmtree(folder / "work", ignore_errors=True)  # of a run killed as it finished
    return report


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run.

    Raises:
        RunError: If the file holds none.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{file.name} is no object")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file.parent} holds a damaged run ({first_line(error)}); remove it"
        ) from error
    return content


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())
