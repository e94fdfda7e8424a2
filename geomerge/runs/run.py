"""Finished runs, opened again from their folders."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from geomerge.certificate.verify import Verification, verify_run
from geomerge.errors import GeomergeError, RunError
from geomerge.expert import Expert
from geomerge.notebook import card, sentences, table
from geomerge.paths.path import WeightPath
from geomerge.pretrained import stored_expert
from geomerge.runs.folder import read_json
from geomerge.runs.kinds import kind_of, write_page

__all__ = ["Run", "open_run"]


class Run:
    """A finished run of any kind.

    Args:
        folder: Folder of the run.
        report: Content of ``report.json``.
        arch: Architecture of its networks, as :func:`open_run` takes it.

    Attributes:
        folder: Folder of the run.
        report: Content of ``report.json``.
    """

    def __init__(
        self,
        folder: Path,
        report: dict[str, Any],
        arch: str | Callable[[], nn.Module] | None = None,
    ) -> None:
        self.folder = folder
        self.report = report
        self._arch = arch

    @property
    def kind(self) -> str:
        """Name of the command: merge, sparsify, reconfigure, compare or stream."""
        return kind_of(self.report).name

    @property
    def recipe(self) -> dict[str, Any]:
        """Options and digests of inputs: all that decides the result."""
        recipe: dict[str, Any] = self.report["recipe"]
        return recipe

    @property
    def notes(self) -> list[str]:
        """Sentences on assumptions, omissions and limits of the run."""
        return list(self.report.get("notes", []))

    @cached_property
    def path(self) -> WeightPath:
        """Path of a merge or a sparsification.

        Raises:
            RunError: If the run has none.
        """
        return WeightPath(self.folder / "path", arch=self._arch)

    def expert(self, t: float | None = None) -> Expert:
        """Return a network of the run, without data.

        Args:
            t: Point of the path, from 0 to 1. None takes the result: the merged, the sparse, or
                the last reconfigured network.

        Raises:
            GeomergeError: If the run has no such network.
        """
        if t is not None and (self.folder / "path").is_dir():
            return self.path.expert(t)
        return stored_expert(self.folder, t=t, arch=self._arch)

    def module(self, t: float | None = None) -> nn.Module:
        """Return a network of the run as a new module in evaluation mode, as :meth:`expert`.

        Raises:
            GeomergeError: If the run has no such network.
        """
        return self.expert(t).module()

    def _repr_html_(self) -> str:
        page = kind_of(self.report).page(self.folder, self.report)
        numbers = [(number.label, number.value, number.detail) for number in page.numbers]
        return card(
            f"geomerge {self.kind}: {page.title}",
            table(("", "", ""), numbers),
            sentences([*page.verdict, *(f"Note: {note}" for note in self.notes)]),
        )

    def __repr__(self) -> str:
        return f"<Run of geomerge {self.kind} in {self.folder}>"

    def verify(
        self,
        *,
        networks: Mapping[str, Path] | None = None,
        data_root: str | None = None,
        download: bool = False,
        device: str = "cpu",
    ) -> Verification:
        """Verify every claim of a merge's certificate, as :func:`verify_run` does."""
        return verify_run(
            self.folder, networks=networks, arch=self._arch,
            data_root=data_root, download=download, device=device,
        )  # fmt: skip

    def write_page(self, open: bool = False) -> Path:
        """Write ``report.html`` again from the stored numbers and pictures, and return the file.

        Args:
            open: Whether to show it in the browser.

        Raises:
            RunError: If the run is damaged.
        """
        try:
            file = write_page(self.folder, self.report)
        except GeomergeError:
            raise
        except Exception as error:  # a file from outside may hold anything where numbers belong
            raise RunError(
                f"{self.folder} was made by another version of geomerge or is damaged; run its "
                "command again"
            ) from error
        if open:
            webbrowser.open(file.absolute().as_uri())
        return file


def open_run(folder: str | Path, arch: str | Callable[[], nn.Module] | None = None) -> Run:
    """Open the folder of a finished run.

    Args:
        folder: Folder of a merge, sparsification, reconfiguration, comparison or stream, of this
            version of geomerge or an earlier one.
        arch: Architecture of the networks, where the run does not record it or the factory that it
            records cannot be imported here: a name, ``module:factory``, or a callable that returns
            the module.

    Raises:
        RunError: If there is no finished run in it.

    Example:
        >>> import geomerge as gm
        >>> gm.open_run("nowhere")
        Traceback (most recent call last):
        geomerge.errors.RunError: nowhere is not the folder of a finished run; name one
    """
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise RunError(f"{folder} is not the folder of a finished run; name one")
    report = read_json(folder / "report.json")
    kind_of(report)
    return Run(folder, report, arch)
