"""Merge reports as Avalanche metrics, for its text, CSV and TensorBoard loggers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geomerge.continual.report import MergeReport
from geomerge.strategies.avalanche import MetricValue, PluginMetric

__all__ = ["MergeMetric", "merge_metrics"]

_VALUES: dict[str, Callable[[MergeReport], float]] = {
    "Merge_Drift": lambda report: max(report.pick.drift.values(), default=0.0),
    "Merge_PathLength": lambda report: report.pick.length,
    "Merge_WorstDrop": lambda report: max(report.pick.changed.values(), default=0.0),
}


class MergeMetric(PluginMetric[float]):  # type: ignore[misc]
    """One number of each merge, emitted after the experience that ends with it.

    Args:
        name: ``Merge_Drift``, the largest mean KL of a remembered task to its old outputs;
            ``Merge_PathLength``, the length of the path to its picked point; or
            ``Merge_WorstDrop``, the largest share of a remembered task's answers that changed.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._last: float = float("nan")
        self._before = 0  # reports before the experience

    def __str__(self) -> str:
        return self._name

    def result(self, **kwargs: Any) -> float:
        """Return the last value."""
        return self._last

    def reset(self, **kwargs: Any) -> None:
        """Forget the last value."""
        self._last = float("nan")

    def before_training_exp(self, strategy: Any) -> None:
        """Count the merges so far."""
        self._before = len(_reports(strategy))

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit the number of every merge of the experience, one for each of its heads."""
        found = [
            float(_VALUES[self._name](report)) for report in _reports(strategy)[self._before :]
        ]
        if found:
            self._last = found[-1]
        name = f"{self._name}/train_phase/{strategy.experience.origin_stream.name}_stream"
        step = strategy.clock.train_iterations
        return [MetricValue(self, name, value, step) for value in found]


def merge_metrics() -> list[MergeMetric]:
    """Return all metrics of merges, for an ``EvaluationPlugin``."""
    return [MergeMetric(name) for name in _VALUES]


def _reports(strategy: Any) -> list[MergeReport]:
    for source in (strategy, *strategy.plugins):
        if hasattr(source, "merge_reports"):
            found: list[MergeReport] = source.merge_reports
            return found
    return []
