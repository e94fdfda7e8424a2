"""CSV logger of Avalanche with a third file, for the metrics of merges."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from geomerge.strategies.avalanche import CSVLogger, MetricValue

__all__ = ["MergeCSVLogger"]

_PREFIX = "Merge_"


class MergeCSVLogger(CSVLogger):  # type: ignore[misc]
    """Logger that writes ``merge_results.csv`` in addition to the files of Avalanche's logger.

    Args:
        log_folder: Folder of the files.
    """

    def __init__(self, log_folder: str | Path) -> None:
        super().__init__(str(log_folder))
        self._file = Path(log_folder) / "merge_results.csv"
        if not self._file.exists():  # a resumed run keeps its lines
            self._file.write_text("training_exp,metric,value\n")

    def after_training_exp(
        self, strategy: Any, metric_values: list[MetricValue], **kwargs: Any
    ) -> None:
        """Write the numbers of the merge that has just ended."""
        super().after_training_exp(strategy, metric_values, **kwargs)
        with self._file.open("a", newline="") as file:
            for value in metric_values:
                if value.name.startswith(_PREFIX):
                    number = strategy.experience.current_experience
                    csv.writer(file).writerow([number, value.name.partition("/")[0], value.value])
