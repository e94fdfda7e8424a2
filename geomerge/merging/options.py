"""What a merge can be told, checked before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from geomerge.crossover import parse_pick
from geomerge.errors import OptionError, did_you_mean
from geomerge.metric.outputs import OUTPUTS
from geomerge.tasks import split_normalisations

__all__ = ["METRICS", "PRESETS", "MergeOptions"]

PRESETS = ("sketch", "paper")
METRICS = ("kronecker", "euclidean")
# Where the data lies and what computes change nothing that a recipe stands for.
_PLACES = ("data_root", "download", "device", "sketch_a", "sketch_b")


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merge; None lets geomerge choose.

    Attributes:
        manifold: Task names whose inputs the walk may use; ``"a=..."`` and ``"b=..."`` say whose.
        preset: ``"sketch"`` or ``"paper"``.
        metric: ``"kronecker"`` or ``"euclidean"``.
        output: ``"hellinger"`` or ``"logits"``, what the metric measures.
        damping: mu; None walks several and keeps the best.
        steps: Steps of each walk.
        pick: ``"max-min"``, ``"balanced"``, ``"equal-drift"`` or a floor such as ``"a>=0.80"``.
        points: Most networks stored on the path, 8 at least.
        seed: Of everything drawn.
        task_a: Task of a, where its checkpoint does not say.
        task_b: Task of b.
        sketch_a: File with a's sketch.
        sketch_b: File with b's sketch.
        arch: Architecture of both, where the weights do not say.
        normalisation: ``"TASK=MEAN/STD"``, instead of the usual or recorded ones.
        data_root: Folder of the named data sets.
        download: Whether torchvision may fetch them.
        device: Where to compute.
    """

    manifold: tuple[str, ...] = ()
    preset: str | None = None
    metric: str = "kronecker"
    output: str = "hellinger"
    damping: float | None = None
    steps: int | None = None
    pick: str | None = None
    points: int = 64
    seed: int = 0
    task_a: str | None = None
    task_b: str | None = None
    sketch_a: str | None = None
    sketch_b: str | None = None
    arch: str | None = None
    normalisation: tuple[str, ...] = ()
    data_root: str | None = None
    download: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            OptionError: With the value, what was expected and what to do.
        """
        for what, value, known in (
            ("preset", self.preset, PRESETS),
            ("metric", self.metric, METRICS),
            ("output", self.output, OUTPUTS),
        ):
            if value is not None and value not in known:
                raise OptionError(f"unknown {what} {value!r}{did_you_mean(value, known)}")
        if self.damping is not None and not 0 < self.damping < float("inf"):
            raise OptionError(f"expected a positive --damping, got {self.damping}; try 3e-4")
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"expected at least one step, got --steps {self.steps}; try 240")
        if self.points < 8:
            raise OptionError(f"expected --points of 8 or more, got {self.points}; try 64")
        if self.pick is not None:
            parse_pick(self.pick, 0.0, 0.0)
        self.manifolds()
        split_normalisations(self.normalisation)

    def manifolds(self) -> tuple[dict[str, str], list[str]]:
        """Split ``manifold`` into those given to a side outright and the others, in order."""
        given: dict[str, str] = {}
        rest: list[str] = []
        for text in self.manifold:
            side, equals, name = text.partition("=")
            if equals and side in ("a", "b"):
                if side in given:
                    raise OptionError(
                        f"two manifolds for {side}, {given[side]!r} and {name!r}; name one"
                    )
                given[side] = name
            else:
                rest.append(text)
        if len(given) + len(rest) > 2:
            raise OptionError(
                f"expected at most two manifolds, got {len(self.manifold)}; leave the others out"
            )
        return given, rest

    def recipe(self, digests: dict[str, str]) -> dict[str, Any]:
        """Return all that decides the result, as JSON keeps it.

        Args:
            digests: SHA-256 of each input file.
        """
        options = {k: v for k, v in asdict(self).items() if k not in _PLACES}
        options["manifold"] = list(self.manifold)
        options["normalisation"] = list(self.normalisation)
        return {"merge": options, "inputs": digests}
