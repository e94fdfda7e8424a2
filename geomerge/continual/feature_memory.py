"""Memory of learned classes in feature space: statistics, metric, choice of the shrinkage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from geomerge.continual.class_statistics import ClassStatistics, Discriminant, StoredStatistics
from geomerge.continual.memory_limit import megabytes
from geomerge.errors import OptionError
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.sketch import truncated_metric

__all__ = [
    "SHRINKAGES",
    "FeatureMemory",
    "discriminants",
    "fit_feature_memory",
    "least_feature_bytes",
]

SHRINKAGES = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
_SHRINK = 0.7


@dataclass(frozen=True)
class FeatureMemory:
    """Memory of all learned classes.

    Attributes:
        statistics: Statistics of the classes in the features of the network.
        metric: Sum of the metrics of the features of all tasks, on layers that may move; None where
            none may.
        tasks: Number of tasks.
        right: Number of held-out examples that the discriminant classified rightly with each
            shrinkage, over all tasks.
    """

    statistics: StoredStatistics
    metric: KroneckerMetric | None
    tasks: int
    right: Tensor

    @property
    def by_kind(self) -> dict[str, int]:
        """Number of bytes stored of each kind."""
        metric = 0 if self.metric is None else self.metric.nbytes
        return {"metric": metric, "statistics": self.statistics.nbytes + self.right.nbytes}

    @property
    def nbytes(self) -> int:
        """Number of bytes of everything stored."""
        return sum(self.by_kind.values())

    @property
    def shrinkage(self) -> float:
        """Shrinkage with the most held-out examples right."""
        return SHRINKAGES[int(self.right.argmax())]

    def discriminants(self) -> dict[int | None, Discriminant]:
        """Return the discriminant of each head."""
        return discriminants(self.statistics.whole(), self.right)


def least_feature_bytes(classes: int, features: int) -> int:
    """Return a lower bound of the bytes of a memory of class statistics.

    Args:
        classes: Number of classes.
        features: Number of features.
    """
    means, direction = classes * (4 * features + 8), 2 * features + 4
    return means + direction + 8 * len(SHRINKAGES)


def discriminants(statistics: ClassStatistics, right: Tensor) -> dict[int | None, Discriminant]:
    """Return the discriminant of each head, with the shrinkage that got most examples right.

    Args:
        statistics: Statistics of the classes.
        right: Number of held-out examples right with each of :data:`SHRINKAGES`.
    """
    shrinkage = SHRINKAGES[int(right.argmax())]
    heads = dict.fromkeys(head for head, _ in statistics.keys)
    return {head: statistics.discriminant(head, shrinkage) for head in heads}


def fit_feature_memory(memory: FeatureMemory, limit: int) -> FeatureMemory:
    """Return a memory that fits: the metric loses eigenvectors first, then the covariance does.

    Args:
        memory: Memory.
        limit: Largest number of bytes.

    Raises:
        OptionError: If even the smallest does not fit.
    """
    while memory.nbytes > limit:
        statistics, metric = memory.statistics, memory.metric
        smaller = memory
        if metric is not None:
            smaller = replace(
                memory, metric=truncated_metric(metric, int(_SHRINK * metric.nbytes / 2))
            )
        if smaller.nbytes == memory.nbytes:
            rank = int(_SHRINK * statistics.rank)
            smaller = replace(memory, statistics=statistics.truncated(max(rank, 1)))
        if smaller.nbytes == memory.nbytes:
            kinds = ", ".join(f"{k} {megabytes(size)}" for k, size in memory.by_kind.items())
            raise OptionError(
                f"the memory of {len(statistics.keys)} classes needs {megabytes(memory.nbytes)} at "
                f"least ({kinds}), expected at most `memory_mb` {limit / 1e6:g}; raise `memory_mb`"
            )
        memory = smaller
    return memory
