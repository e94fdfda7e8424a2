"""Options of the merge after an experience."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from geomerge.continual.image_views import VIEWS
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.outputs import OUTPUTS
from geomerge.metrics.registry import METRICS, MetricKind
from geomerge.options import (
    FlatOptions,
    at_least,
    check_options,
    option,
    piece,
    positive,
)

__all__ = [
    "HEADS",
    "STATISTICS",
    "ContinualOptions",
    "ContinualWalkOptions",
    "FeatureOptions",
    "TaskMemoryOptions",
    "walk_metrics",
]

HEADS = ("auto", "trained", "discriminant")
STATISTICS = ("measured", "expert", "before")


def walk_metrics() -> tuple[str, ...]:
    """Return the names of the metrics of a walk: those that can be stored, or need no inputs."""
    return tuple(
        name
        for name, kind in METRICS.items()
        if issubclass(kind.cls, KroneckerMetric) or not kind.needs_inputs
    )


def _share(value: float) -> str | None:
    return None if 0 <= value < 1 else "a share in [0, 1)"


def _part(value: float) -> str | None:
    return None if 0 <= value <= 1 else "a share in [0, 1]"


def _tasks(value: Any) -> str | None:
    known = isinstance(value, int) or value in ("earlier", "new")
    return None if known else "'earlier', 'new' or the number of an earlier task"


@dataclass(frozen=True)
class ContinualWalkOptions:
    """Options of the walk after an experience."""

    epochs: float = option(
        2.0, "number of passes of the walk over the experience's inputs", check=positive
    )
    damping: float = option(
        0.1, "damping mu of the steps; larger learns more and keeps less", check=positive
    )
    learning_rate: float = option(
        0.1,
        "learning rate of the first step, in directions that no task constrains; it falls linearly "
        "to zero",
        check=positive,
    )
    momentum: float = option(0.9, "share of the last step kept in the next", check=_share)
    batch: int = option(
        128,
        "number of the experience's inputs per step; fewer, down to 8, where an epoch would have "
        "under 50 steps, or under 200 with five or more earlier tasks",
        check=positive,
    )
    rehearsal: int = option(
        128, "number of pseudo-inputs and stored inputs of earlier tasks per step", check=positive
    )
    labels: bool = option(
        False, "use of the experience's labels; else the walk follows the expert's function"
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        check_options(self)


@dataclass(frozen=True)
class TaskMemoryOptions:
    """Options of the memory of each task."""

    examples: int = option(0, "number of unlabelled inputs stored of each task", check=at_least(0))
    pseudo_inputs: int = option(
        5000,
        "largest number of pseudo-inputs drawn for each task from the moments of its inputs; 0 "
        "stores no moments",
        check=at_least(0),
    )
    rank: int = option(
        32,
        "largest number of leading directions of each class's inputs in the moments",
        check=positive,
    )
    sketch_inputs: int = option(
        2000, "number of inputs on which a task's metric is measured", check=positive
    )
    memory_mb: float | None = option(
        None,
        "largest number of megabytes, of 10^6 bytes, stored of all tasks together; default 5, or "
        "four times the network where that is more",
        check=positive,
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        check_options(self)


@dataclass(frozen=True)
class FeatureOptions:
    """Options of a head in closed form, and of the features below it."""

    head: str = option(
        "auto",
        "head: 'trained' and merged with all else; 'discriminant', the linear discriminant of "
        "class statistics in feature space; 'auto' takes the first where pseudo-inputs pass for "
        "inputs",
        choices=HEADS,
    )
    classifier: str | None = option(
        None,
        "name of the linear layer whose inputs are the features; default the last that is called",
    )
    moving: float = option(
        0.5,
        "share of the layers below a discriminant, from the last one down, that may move after the "
        "first experience; 0 freezes the features",
        check=_part,
    )
    old_weight: float = option(
        2.0, "weight of the network before in the mean with the expert", check=positive
    )
    views: str = option(
        "none",
        "views of square images of which class statistics are measured too: 'shifted' by a "
        "sixteenth of the side, or 'mirrored' as well, for classes that a mirror does not change; "
        "'none' by default",
        choices=VIEWS,
        recorded="given",
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        check_options(self)


@dataclass(frozen=True, init=False)
class ContinualOptions(FlatOptions):
    """Options of the merge after an experience; options of the pieces are keywords too.

    Raises:
        OptionError: If an option is out of its range.

    Example:
        >>> from geomerge.strategies import ContinualOptions
        >>> options = ContinualOptions(epochs=1, examples=20, budget=0.05)
        >>> options.walk.epochs, options.memory.examples, options.budget
        (1, 20, 0.05)
    """

    inputs: int | None = option(
        None,
        "largest number of inputs of an experience that are used, drawn at random; all by default",
        check=positive,
    )
    metric: str = option(
        "kronecker",
        "metric of the walk; with the Euclidean one no metrics are stored unless a budget needs "
        "them",
        choices=walk_metrics,
    )
    output: str = option("hellinger", "output whose change the metric measures", choices=OUTPUTS)
    metric_tasks: str | int = option(
        "earlier",
        "tasks whose functions the metric keeps: 'earlier', all remembered ones; 'new', the "
        "experience itself; or the number of one remembered task",
        check=_tasks,
        formerly="manifold",
    )
    budget: float | None = option(
        None,
        "largest change (w - w_k)' g_k (w - w_k) of each remembered function along a walk, w_k the "
        "weights at which task k was remembered; no limit by default",
        check=positive,
    )
    merge_every: int = option(
        1,
        "number of experiences that are merged as one: those of online streams are short; their "
        "inputs wait until then",
        check=at_least(1),
    )
    statistics: str = option(
        "measured",
        "BatchNorm statistics after the merge: measured on inputs at hand and drawn, or those of "
        "the expert or of the network before",
        choices=STATISTICS,
    )
    seed: int = option(0, "seed of the order of inputs and of all draws")
    walk: ContinualWalkOptions = piece(ContinualWalkOptions)
    memory: TaskMemoryOptions = piece(TaskMemoryOptions)
    features: FeatureOptions = piece(FeatureOptions)

    @property
    def metric_kind(self) -> MetricKind:
        """The entry of the walk's metric in the registry."""
        return METRICS[self.metric]

    @property
    def tells_tasks_apart(self) -> bool:
        """Whether every task needs a sketch of its own."""
        return self.budget is not None or isinstance(self.metric_tasks, int)

    @property
    def measures_tasks(self) -> bool:
        """Whether a metric is measured on every task that is remembered."""
        return self.metric_kind.needs_inputs or self.budget is not None
