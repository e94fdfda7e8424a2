"""What a merge can be told, checked before any work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from geomerge.alignment import METHODS
from geomerge.data import split_normalisations
from geomerge.data.batchnorm import BN
from geomerge.errors import OptionError
from geomerge.evaluation.pick import parse_pick
from geomerge.merging.heads import HEADS
from geomerge.merging.presets.registry import PRESETS
from geomerge.metrics import METRICS
from geomerge.metrics.outputs import OUTPUTS
from geomerge.options import check_known, check_positive, parse_size, recorded

__all__ = ["ALIGN", "LEARNABLE", "MergeOptions"]

ALIGN = ("none", *METHODS)
LEARNABLE = ("damping",)


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merge; None lets geomerge choose. Networks are named a, b, c, ... in order.

    Attributes:
        manifold: Task names whose inputs the walk may use; ``"a=..."`` says whose.
        preset: ``"joint"``, ``"sketch"`` or ``"paper"``.
        metric: ``"kronecker"``, ``"exact"``, ``"gram"`` or ``"euclidean"``.
        output: One of :data:`~geomerge.metrics.outputs.OUTPUTS`, what the metric measures.
        head: ``"shared"``, ``"offset"`` or ``"separate"``.
        align: ``"weights"`` or ``"activations"``: permutes the units of every network after the
            first, so that they are like the first's; its function stays. ``"none"`` does not.
        bn: ``"keep"`` or ``"re-estimate"``, what happens to running statistics.
        damping: mu; None walks several and keeps the best.
        learning_rate: Of the walk's first step.
        steps: Steps of each walk.
        budget: ``"b=0.02"``, or ``"b/3=0.02"`` for one class and ``"b/*=0.02"`` for each: by how
            much a network's function may get worse along the walk.
        learn: ``"damping"``: adjusts mu along one walk instead of trying several.
        relax: Whether the finished path is relaxed to least energy.
        pick: ``"max-min"``, ``"balanced"``, ``"equal-drift"`` or a floor such as ``"a>=0.80"``.
        keep_zeros: Whether weights that are zero in every network stay zero all along the path.
        memory: Most that the process may hold, such as ``"2GB"``: passes become smaller, and the
            metric another one, until it fits; None is no limit.
        points: Most networks stored on the path, 8 at least.
        seed: Of everything drawn.
        task: ``"a=NAME"``: the task of a network whose checkpoint does not say.
        sketch: ``"b=FILE"``: a network's sketch.
        arch: Architecture of all, where the weights do not say.
        normalisation: ``"TASK=MEAN/STD"``, instead of the usual or recorded ones.
        data_root: Folder of the named data sets.
        download: Whether torchvision may fetch them.
        device: Where to compute.

    Example:
        >>> import geomerge as gm
        >>> gm.MergeOptions(manifold=("mnist", "b=digits")).manifolds()
        ({'b': 'digits'}, ['mnist'])
        >>> gm.MergeOptions(pick="max-mim")
        Traceback (most recent call last):
        geomerge.errors.OptionError: unknown pick 'max-mim'; did you mean 'max-min'? ...
    """

    manifold: tuple[str, ...] = ()
    preset: str | None = None
    metric: str = "kronecker"
    output: str = "hellinger"
    head: str = "shared"
    align: str = "none"
    bn: str | None = None
    damping: float | None = None
    learning_rate: float | None = None
    steps: int | None = None
    budget: tuple[str, ...] = ()
    learn: str | None = None
    relax: bool = False
    pick: str | None = None
    keep_zeros: bool = False
    memory: str | None = None
    points: int = 64
    seed: int = 0
    task: tuple[str, ...] = ()
    sketch: tuple[str, ...] = ()
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
            ("preset", self.preset, () if self.preset is None else PRESETS.names()),
            ("metric", self.metric, METRICS.names()),
            ("output", self.output, OUTPUTS),
            ("head", self.head, HEADS),
            ("align", self.align, ALIGN),
            ("bn", self.bn, BN),
            ("learn", self.learn, LEARNABLE),
        ):
            check_known(what, value, known)
        check_positive("damping", self.damping)
        check_positive("learning-rate", self.learning_rate)
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"expected at least one step, got `steps` {self.steps}; try 240")
        if self.points < 8:
            raise OptionError(f"expected `points` of 8 or more, got {self.points}; try 64")
        if self.learn is not None and self.metric == "euclidean":
            raise OptionError(
                "`learn` damping needs a metric to damp, and the Euclidean one has the same in all "
                "directions; leave one of the two out"
            )
        if self.keep_zeros and self.relax:
            raise OptionError(
                "`relax` moves every weight and `keep_zeros` does not allow that; leave one out"
            )
        if self.pick is not None:
            parse_pick(self.pick, dict.fromkeys(ascii_lowercase))
        if self.memory is not None:
            parse_size(self.memory)
        self.manifolds()
        self.budgets()
        self.by_network("sketch")
        self.by_network("task")
        split_normalisations(self.normalisation)

    def manifolds(self) -> tuple[dict[str, str], list[str]]:
        """Split ``manifold`` into those given to a network outright and the others, in order."""
        given: dict[str, str] = {}
        rest: list[str] = []
        for text in self.manifold:
            match = re.match(r"([a-z])=", text)
            if match is None:
                rest.append(text)
                continue
            name, task = match[1], text[2:]
            if name in given:
                raise OptionError(
                    f"two manifolds for {name}, {given[name]!r} and {task!r}; name one"
                )
            given[name] = task
        return given, rest

    def by_network(self, option: str) -> dict[str, str]:
        """Return what ``sketch`` or ``task`` say, by the name of a network.

        Raises:
            OptionError: If one does not say of which network it is, or two are of one.
        """
        found: dict[str, str] = {}
        for text in getattr(self, option):
            match = re.match(r"([a-z])=(.+)", text)
            if match is None or match[1] in found:
                raise OptionError(
                    f"expected one `{option}` for each network, such as b={text}, got {text!r}"
                )
            found[match[1]] = match[2]
        return found

    def budgets(self) -> dict[str, float]:
        """Return the budgets by what they bound, ``"b"`` or ``"b/3"`` or ``"b/*"``.

        Raises:
            OptionError: If one is not a name and a number that is not negative.
        """
        found: dict[str, float] = {}
        for text in self.budget:
            match = re.fullmatch(r"([a-z](?:/(?:\d+|\*))?)=(\d*\.?\d+(?:e-?\d+)?)", text)
            if match is None or match[1] in found:
                raise OptionError(
                    f"expected `budget` NETWORK=NUMBER such as b=0.02, once for each, got {text!r}"
                )
            found[match[1]] = float(match[2])
        return found

    def recipe(self, digests: dict[str, str]) -> dict[str, Any]:
        """Return all that decides the result, as JSON keeps it.

        Args:
            digests: SHA-256 of each input file.
        """
        return {"merge": recorded(self, "sketch"), "inputs": digests}
