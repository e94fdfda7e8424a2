"""What is known of the merge after an experience."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["MergeReport", "PathPoint"]


@dataclass(frozen=True)
class PathPoint:
    """A measured point of the walk.

    Attributes:
        step: Its number; 0 is where the straight first step ends.
        length: Of the path from the network before up to here, in the metric of the walk.
        new: What it still lacks of the experience: mean KL to the expert, or the mean
            cross-entropy where labels are used, on a sample.
        drift: Mean KL of each remembered task's outputs to what they were, on its pseudo-inputs and
            kept inputs; of a task without any, half of what its sketch predicts.
        changed: Share of each task's answers on those that are no longer the same, in [0, 1].
    """

    step: int
    length: float
    new: float
    drift: dict[str, float]
    changed: dict[str, float]

    @property
    def value(self) -> float:
        """Mean over the experience and all remembered tasks; the walk ends where it is least."""
        return (self.new + sum(self.drift.values())) / (1 + len(self.drift))


@dataclass(frozen=True)
class MergeReport:
    """The merge after one experience.

    Attributes:
        task: Its name.
        line: Points from the network before on, tenths of the straight way to the expert, as far as
            budgets allow.
        jumped: Share of that line that the first step took.
        path: Measured points of the walk from there on.
        picked: Step of the point that became the network.
        predicted: Quadratic drift (w - w_k)' g_k (w - w_k) of each remembered task there, by its
            sketch.
        damping: mu.
        learning_rate: Of the walk that was taken.
        steps: Of the walk.
        rows: Linearised rows of remembered tasks that steps had to keep, all together.
        solves: Quadratic programs solved.
        shortened: Steps shortened to stay within the budget.
        step_bytes: Held by a step at most: metric, momentum, rows.
        memory: Bytes kept, by task, after the merge.
        kept: Share of trace and variance that each task's sketch and moments still have.
        used: What the walk used: counts of ``inputs``, ``labels``, ``pseudo_inputs``,
            ``kept_inputs``.
        passes: Inputs passed forwards and backwards by the walk, in epochs of the experience.
        expert_seconds: Training of the expert.
        merge_seconds: Walk and everything else after it, remembering included.
        notes: What a reader should know, in sentences.
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
    kept: dict[str, dict[str, float]] = field(default_factory=dict)
    expert_seconds: float = 0.0
    merge_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def pick(self) -> PathPoint:
        """The point that became the network."""
        return next(point for point in self.path if point.step == self.picked)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON keeps it."""
        return asdict(self)
