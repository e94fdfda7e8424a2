"""Results of a table of methods on a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from geomerge.errors import OptionError, did_you_mean
from geomerge.notebook import card, table
from geomerge.report.tables import stream_table
from geomerge.runs.folder import RunFolder

__all__ = ["StreamResult", "StreamRow", "summary"]


@dataclass(frozen=True)
class StreamRow:
    """A row of the table: what was measured of one method.

    Attributes:
        name: Name of the row.
        about: Description of the method, half a sentence.
        matrix: Row t holds the accuracies on the test splits of all tasks learned by then; one row
            alone is of a network that learned them at once.
        average: Mean of each row of the matrix.
        accuracy: Mean accuracy on all tasks in the end.
        backward_transfer: Mean change of each task's accuracy since it was learned; None where
            there is nothing to compare.
        forgetting: Mean loss of each task's accuracy since it was best; None as above.
        select: Mean accuracy in the end on the selection splits.
        kept: Memory kept between experiences: ``megabytes``, ``examples`` and ``labels``.
        learning_rate: Learning rate of the first step of each experience.
        epochs: Number of passes over each experience's examples.
        passes: Number of passes forwards and backwards over all examples, in epochs.
        seconds: Seconds of ``training`` and of ``merging``.
        merges: Reports of merges, as JSON stores them.
        hardly_trained: Whether the row learned all tasks at once and answers them at chance, so
            that it bounds nothing.
    """

    name: str
    about: str
    matrix: list[list[float]]
    average: list[float]
    accuracy: float
    backward_transfer: float | None
    forgetting: float | None
    select: float
    kept: dict[str, float]
    learning_rate: float
    epochs: int
    passes: float
    seconds: dict[str, float]
    merges: list[dict[str, Any]] = field(default_factory=list)
    hardly_trained: bool = False


@dataclass(frozen=True)
class StreamResult:
    """Table of methods on a stream.

    Attributes:
        rows: Rows of the table.
        diverged: Reasons why rows are not in the table, by name.
        about: Stream, network, options and versions, as the report stores them.
        recipe: Everything that decides the result, as JSON.
        command: Command or call that makes the result.
    """

    rows: list[StreamRow]
    diverged: dict[str, str]
    about: dict[str, Any]
    recipe: dict[str, Any]
    command: str

    def __getitem__(self, name: str) -> StreamRow:
        """Return the row of a name.

        Raises:
            OptionError: If there is none.
        """
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            raise OptionError(f"no row {name!r} in the table{did_you_mean(name, rows)}")
        return rows[name]

    @property
    def notes(self) -> list[str]:
        """Sentences on rows that are not in the table, or that are no bound."""
        return [
            *(f"{name} is not in the table: {why}" for name, why in self.diverged.items()),
            *(
                f"{row.name} is at chance ({100 * row.accuracy:.2f} %): it hardly trained, and "
                "bounds "
                f"nothing; give more `epochs`, or another rate with `rates` {row.name}=0.01"
                for row in self.rows
                if row.hardly_trained
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``report.json``, without recipe and command."""
        return {
            **self.about,
            "rows": [asdict(row) for row in self.rows],
            "diverged": self.diverged,
        }

    def save(self, folder: str | Path) -> Path:
        """Write a run folder with recipe, report, page, table and picture; return its path.

        Args:
            folder: Folder to write; an existing run of the same recipe stays as it is.

        Raises:
            RunError: If the folder holds another run or cannot be written.
        """
        run = RunFolder(folder, self.about["stream"]["name"], self.recipe, self.command)
        if not run.before:
            with run.unfinished("cpu") as unfinished:
                run.finish(unfinished, {**self.to_json(), "recipe": self.recipe})
        return run.path

    def __repr__(self) -> str:
        best = max(self.rows, key=lambda row: row.accuracy)
        return (
            f"<StreamResult of {len(self.rows)} methods on {self.about['stream']['name']}: best "
            f"{best.name}, accuracy {best.accuracy:.4f}>"
        )

    def _repr_html_(self) -> str:
        headings, cells = stream_table(self.to_json())
        count = len(self.about["stream"]["experiences"])
        title = f"{self.about['stream']['name']}: {count} experiences, {len(self.rows)} methods"
        return card(title, table(headings, cells), *self.notes)


def summary(matrix: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the usual numbers of a matrix of accuracies.

    Args:
        matrix: Accuracies as in :class:`StreamRow`.

    Returns:
        ``average``, ``accuracy``, ``backward_transfer`` and ``forgetting``. The last task is not
        among the latter two; None where there is nothing to compare.
    """
    last = matrix[-1]
    old = range(len(last) - 1) if len(matrix) > 1 else range(0)
    best = [max(row[i] for row in matrix[i:-1]) for i in old]
    return {
        "average": [fmean(row) for row in matrix],
        "accuracy": fmean(last),
        "backward_transfer": fmean(last[i] - matrix[i][i] for i in old) if old else None,
        "forgetting": fmean(best[i] - last[i] for i in old) if old else None,
    }
