"""Settings of the merge after an experience."""

from __future__ import annotations

from dataclasses import dataclass

from geomerge.errors import OptionError
from geomerge.metrics.outputs import OUTPUTS
from geomerge.options import check_known

__all__ = ["STATISTICS", "ContinualOptions"]

METRICS = ("kronecker", "euclidean")
STATISTICS = ("measured", "expert", "before")


@dataclass(frozen=True)
class ContinualOptions:
    """Settings of the merge after an experience.

    Attributes:
        inputs: Most inputs of an experience that are used, drawn at random; None takes all.
        epochs: Passes of the walk over the experience's inputs.
        damping: mu. Larger learns more and keeps less.
        learning_rate: Of the first step, in directions in which nothing is kept; it falls
            linearly to zero.
        momentum: Share of the last step kept in the next.
        batch: Inputs of the experience per step; fewer, down to 8, where an epoch would have
            under 50 steps.
        rehearsal: Pseudo-inputs and kept inputs of earlier tasks per step.
        labels: Whether the walk uses the experience's labels; else it follows the expert.
        metric: Of the walk: ``"kronecker"``, or ``"euclidean"``, with which no sketches are kept
            unless a budget needs them.
        manifold: Whose function the metric keeps: ``"earlier"``, all remembered tasks; ``"new"``,
            the experience's own inputs; or the number of one remembered task.
        budget: By how much each remembered function may change along a walk: the largest
            (w - w_k)' g_k (w - w_k), w_k the weights at which task k was remembered. None is no
            limit.
        examples: Unlabelled inputs that are kept of each task.
        pseudo_inputs: Drawn for each task from the moments of its inputs; 0 keeps no moments.
        rank: Leading directions of each class's inputs that moments keep.
        sketch_inputs: Inputs on which a task's metric is measured.
        memory_limit: Most bytes kept of all tasks together; None is no limit.
        statistics: Of BatchNorm after the merge: ``"measured"`` on the inputs at hand and drawn,
            or those of the ``"expert"`` or of the network ``"before"``.
        output: What the metric measures: one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        seed: Of the order of inputs and of all draws.

    Raises:
        OptionError: If a setting is out of its range.
    """

    inputs: int | None = None
    epochs: float = 2.0
    damping: float = 0.1
    learning_rate: float = 0.1
    momentum: float = 0.9
    batch: int = 128
    rehearsal: int = 128
    labels: bool = False
    metric: str = "kronecker"
    manifold: str | int = "earlier"
    budget: float | None = None
    examples: int = 0
    pseudo_inputs: int = 5000
    rank: int = 32
    sketch_inputs: int = 2000
    memory_limit: int | None = None
    statistics: str = "measured"
    output: str = "hellinger"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        positive = ("epochs", "damping", "learning_rate", "batch", "rehearsal", "sketch_inputs")
        for name in (*positive, "rank"):
            self._check(name, getattr(self, name) > 0, "a positive number")
        for name in ("examples", "pseudo_inputs"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("inputs", "budget", "memory_limit"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "a positive number or None")
        self._check("momentum", 0 <= self.momentum < 1, "a share in [0, 1)")
        check_known("metric", self.metric, METRICS)
        check_known("statistics", self.statistics, STATISTICS)
        check_known("output", self.output, OUTPUTS)
        fine = isinstance(self.manifold, int) or self.manifold in ("earlier", "new")
        self._check("manifold", fine, "'earlier', 'new' or the number of an earlier task")

    def _check(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise OptionError(f"{name} is {getattr(self, name)!r}, expected {expected}; correct it")
