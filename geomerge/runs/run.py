"""Finished runs, opened again from their folders."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from geomerge.certificate.verify import Verification, verify_run
from geomerge.errors import GeomergeError, RunError
from geomerge.paths.path import WeightPath
from geomerge.pretrained import from_pretrained
from geomerge.runs.folder import read_json
from geomerge.runs.kinds import kind_of, write_page

__all__ = ["Run", "open_run"]


class Run:
    """A finished run of any kind.

    Attributes:
        folder: Folder of the run.
        report: Content of ``report.json``.
    """

    def __init__(self, folder: Path, report: dict[str, Any]) -> None:
        self.folder = folder
        self.report = report

    @property
    def kind(self) -> str:
        """Name of the command: merge, sparsify, reconfigure, compare or stream."""
        return kind_of(self.report).name

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decided the result."""
        recipe: dict[str, Any] = self.report["recipe"]
        return recipe

    @property
    def notes(self) -> list[str]:
        """What the run assumed, left out or could not do, in sentences."""
        return list(self.report.get("notes", []))

    @cached_property
    def path(self) -> WeightPath:
        """Path of a merge or a sparsification.

        Raises:
            RunError: If the run has none.
        """
        return WeightPath(self.folder / "path")

    def module(self, t: float | None = None, *, arch: str | None = None) -> nn.Module:
        """Return a network as a fresh module in evaluation mode.

        Args:
            t: Point of the path, from 0 to 1. None takes the result.
            arch: Architecture, where the run does not say it.

        Raises:
            GeomergeError: If the run has no such network.
        """
        return from_pretrained(self.folder, t=t, arch=arch)

    def verify(
        self,
        *,
        networks: Mapping[str, Path] | None = None,
        data_root: str | None = None,
        download: bool = False,
        device: str = "cpu",
    ) -> Verification:
        """Make every claim of a merge's certificate again, as :func:`verify_run` does."""
        return verify_run(
            self.folder, networks=networks, data_root=data_root, download=download, device=device
        )

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


def open_run(folder: str | Path) -> Run:
    """Open the folder of a finished run.

    Args:
        folder: Folder of a merge, sparsification, reconfiguration, comparison or stream, of this
            version of geomerge or an earlier one.

    Raises:
        RunError: If there is no finished run in it.
    """
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise RunError(f"{folder} is not the folder of a finished run; name one")
    return Run(folder, read_json(folder / "report.json"))
