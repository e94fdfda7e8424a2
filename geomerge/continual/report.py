"""Report of the merge after an experience."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["MergeReport", "PathPoint"]


@dataclass(frozen=True)
class PathPoint:
    """A measured point of the walk.

    Where the head is a discriminant, the points are the network before and its mean with the
    expert: ``new`` is the predicted error over all classes, ``drift`` the share of the features'
    variance that cannot be predicted from the old ones, ``changed`` the share of old classes'
    features with another class.

    Attributes:
        step: Number of the step; 0 is the end of the straight first step.
        length: Length of the path from the network before up to here, in the metric of the walk.
        new: Loss on a sample of the experience: mean KL to the expert, or the mean cross-entropy
            where labels are used.
        drift: Mean KL of each remembered task's outputs to the old ones, on its pseudo-inputs and
            stored inputs; of a task without any, half the quadratic drift by its sketch.
        changed: Share of each task's answers on those inputs that have changed, in [0, 1].
    """

    step: int
    length: float
    new: float
    drift: dict[str, float]
    changed: dict[str, float]

    @property
    def value(self) -> float:
        """Mean loss over the experience and all remembered tasks; the walk ends at its minimum."""
        return (self.new + sum(self.drift.values())) / (1 + len(self.drift))


@dataclass(frozen=True)
class MergeReport:
    """Report of the merge after one experience.

    Attributes:
        task: Name of the experience.
        line: Measured points of the straight line from the network before to the expert, in tenths,
            as far as the budget allows.
        jumped: Share of that line that the first step took.
        path: Measured points of the walk from there on.
        picked: Step of the point that became the network.
        predicted: Quadratic drift (w - w_k)' g_k (w - w_k) of each remembered task there, by its
            sketch.
        damping: Damping mu.
        learning_rate: Learning rate of the walk that was taken.
        steps: Number of steps of the walk.
        rows: Number of linearised constraints of remembered tasks over all steps.
        solves: Number of quadratic programs solved.
        shortened: Number of steps shortened to stay within the budget.
        step_bytes: Largest number of bytes that a step holds: metric, momentum, constraints.
        memory: Number of bytes stored of each task after the merge; the running metric of all tasks
            is among those of the first.
        stored: Number of bytes stored after the merge of each kind: ``metric``, ``moments``,
            ``outputs``, ``weights``, ``examples``, ``statistics``.
        kept: Share of trace and variance that each task's sketch and moments still have.
        used: Counts of ``inputs``, ``labels``, ``pseudo_inputs`` and ``kept_inputs`` that the walk
            used.
        passes: Inputs passed forwards and backwards by the walk, in epochs of the experience.
        expert_seconds: Seconds of the expert's training.
        merge_seconds: Seconds of the walk and the rest of the merge, remembering included.
        notes: Notes on the merge, in sentences.
    """

    task: str
    line: list[PathPoint]
    jumped: float
    path: list[PathPoint]
    picked: int
    predicted: dict[str, float]
    damping: float
    learning_rate: float
    steps: int
    rows: int
    solves: int
    shortened: int
    step_bytes: int
    used: dict[str, int]
    passes: float
    memory: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    kept: dict[str, dict[str, float]] = field(default_factory=dict)
    expert_seconds: float = 0.0
    merge_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def pick(self) -> PathPoint:
        """The measured point that became the network."""
        return next(point for point in self.path if point.step == self.picked)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON stores it."""
        return asdict(self)
