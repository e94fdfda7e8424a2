"""Avalanche's CSV logger, and a third file for merges: it has no columns for other metrics."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import CSVLogger

__all__ = ["MergeCSVLogger"]

_PREFIX = "Merge_"


class MergeCSVLogger(CSVLogger):  # type: ignore[misc]
    """Adds to ``merge_results.csv`` beside the files that Avalanche's logger writes.

    Args:
        log_folder: Where the files go.
    """

    def __init__(self, log_folder: str | Path) -> None:
        super().__init__(str(log_folder))
        self._file = Path(log_folder) / "merge_results.csv"
        if not self._file.exists():  # a run that goes on keeps what it has
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
