"""Options of a stream of tasks and of the table of methods on it, without Avalanche."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from geomerge.continual.image_views import VIEWS
from geomerge.continual.options import walk_metrics
from geomerge.data.options import PlaceOptions
from geomerge.errors import OptionError
from geomerge.options import (
    FlatOptions,
    at_least,
    check_known,
    check_options,
    check_positive,
    option,
    piece,
    positive,
    read_names,
    recorded,
)
from geomerge.strategies.registry import stream_rows

__all__ = [
    "SCENARIOS",
    "STREAMS",
    "BaselineOptions",
    "StreamKind",
    "StreamOptions",
    "StreamTrainingOptions",
    "StreamWalkOptions",
]

SCENARIOS = ("class", "domain", "task")
_MOST = 100  # experiences


@dataclass(frozen=True)
class StreamKind:
    """A named stream.

    Attributes:
        make: Construction of experiences from tasks: ``"permuted"``, ``"rotated"``, ``"split"`` or
            ``"datasets"``.
        tasks: Names of the tasks.
        experiences: Usual number of experiences.
        counts: Numbers of experiences that are possible; None is any from 2 to 100.
        scenarios: Whether classes are divided, so that the scenario is open.
        classes: Number of classes that are divided.
    """

    make: str
    tasks: tuple[str, ...]
    experiences: int
    counts: tuple[int, ...] | None = None
    scenarios: bool = False
    classes: int = 10


def _split(task: str) -> StreamKind:
    return StreamKind("split", (task,), 5, counts=(2, 5), scenarios=True)


STREAMS = {
    "permuted-mnist": StreamKind("permuted", ("mnist",), 10),
    "permuted-digits": StreamKind("permuted", ("digits",), 5),
    "rotated-mnist": StreamKind("rotated", ("mnist",), 10),
    "split-mnist": _split("mnist"),
    "split-fashion": _split("fashion-mnist"),
    "split-cifar10": _split("cifar10"),
    "split-digits": _split("digits"),
    "mnist-fashion": StreamKind("datasets", ("mnist", "fashion-mnist"), 2, counts=(2,)),
}


def _usual_rows() -> tuple[str, ...]:
    return StreamOptions().all_rows


def _examples(value: tuple[int, ...]) -> str | None:
    return None if value and all(k > 0 for k in value) else "positive numbers such as 200"


def _seed(value: int) -> str | None:
    return None if 0 <= value < 2**63 else "from 0 to 2^63 - 1"


@dataclass(frozen=True)
class StreamTrainingOptions:
    """Options of the training that all rows share."""

    epochs: int = option(
        5,
        "number of passes over each task's examples, for every row; walks included",
        group="training",
        check=at_least(1),
    )
    batch: int = option(128, "number of examples per step", group="training", check=at_least(1))
    learning_rate: float = option(
        0.05,
        "learning rate of the first step of each task; it falls linearly to zero",
        group="training",
        check=positive,
    )
    rates: tuple[str, ...] = option(
        (), "ROW=RATE for a row that needs another learning rate", group="training", flag="rate"
    )
    arch: str = option(
        "mlp-100",
        "network: mlp-100 has two hidden layers of 100 units (mlp-256, mlp-400, ...); conv-32 has "
        "four convolutions with BatchNorm, of 32, 64, 128 and 128 channels, for images",
        group="training",
    )
    turns: bool = option(
        False,
        "use of quarter turns of images as further classes in the training of every row",
        group="training",
        recorded="given",
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            OptionError: If a value cannot be used.
        """
        check_options(self)
        _ = self.network, self.rate_of

    @property
    def rate_of(self) -> dict[str, float]:
        """Learning rates of rows that have their own.

        Raises:
            OptionError: If one is not ``ROW=RATE``.
        """
        rates = {}
        for text in self.rates:
            name, _, number = text.partition("=")
            try:
                rates[name] = float(number)
            except ValueError:
                raise OptionError(
                    f"expected `rates` as ROW=RATE such as ewc=0.01, got {text!r}"
                ) from None
            check_positive("rates", rates[name])
        return rates

    @property
    def network(self) -> tuple[str, int]:
        """Kind of the network, ``"mlp"`` or ``"conv"``, and its width.

        Raises:
            OptionError: If the architecture is not known.
        """
        match = re.fullmatch(r"(mlp|conv)-([1-9][0-9]{0,3})", self.arch)
        if match is None:
            raise OptionError(
                f"unknown architecture {self.arch!r}, expected mlp-100 or another number of hidden "
                "units, or conv-32 or another number of channels; give one"
            )
        return match[1], int(match[2])


@dataclass(frozen=True)
class BaselineOptions:
    """Strengths and sizes of baselines."""

    memory_examples: tuple[int, ...] = option(
        (200, 500),
        "numbers of examples stored by replay, a row for each; GEM stores as many as the first",
        group="baselines",
        check=_examples,
    )
    ewc_lambda: float = option(1000.0, "strength of EWC", group="baselines", check=positive)
    si_lambda: float = option(
        100.0, "strength of synaptic intelligence", group="baselines", check=positive
    )
    lwf_alpha: float = option(
        1.0, "strength of learning without forgetting", group="baselines", check=positive
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        check_options(self)


@dataclass(frozen=True)
class StreamWalkOptions:
    """Options of geomerge's own row: of its walks, and of what it stores."""

    walk_epochs: int | None = option(
        None, "number of the epochs that are the walk's; default 1", group="walk"
    )
    walk_rate: float | None = option(
        None, "learning rate of the walk; default 0.1", group="walk", check=positive
    )
    metric: str = option(
        "kronecker",
        "metric of the walk; with the Euclidean one no sketches are stored",
        group="walk",
        choices=walk_metrics,
    )
    labels: bool = option(False, "use of the new task's labels by the walk", group="walk")
    examples: int = option(
        0,
        "number of unlabelled inputs that geomerge stores of each task",
        group="walk",
        check=at_least(0),
    )
    damping: float | None = option(
        None, "damping mu of the walk; default 0.1, more learns more", group="walk", check=positive
    )
    budget: float | None = option(
        None, "largest change of any earlier task's function", group="walk", check=positive
    )
    memory_mb: float | None = option(
        None,
        "megabytes that geomerge may store of all tasks, and that replay-bytes stores; default 5, "
        "or four networks",
        group="walk",
        check=positive,
    )
    moving: float | None = option(
        None,
        "share of the layers below a head of class statistics that geomerge may move after the "
        "first task; default 0.5",
        group="walk",
        recorded="given",
    )
    old_weight: float | None = option(
        None,
        "weight of the network before in the mean below such a head; default 2",
        group="walk",
        recorded="given",
    )
    views: str | None = option(
        None,
        "views of images of which geomerge and frozen measure the statistics of such a head too; "
        "default none",
        group="walk",
        choices=VIEWS,
        recorded="given",
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            OptionError: If a value cannot be used.
        """
        check_options(self)


@dataclass(frozen=True, init=False)
class StreamOptions(FlatOptions):
    """Options of a table of methods on a stream; options of the pieces are keywords too.

    Raises:
        OptionError: If an option cannot be used.

    Example:
        >>> from geomerge.strategies import StreamOptions
        >>> options = StreamOptions("split-digits", epochs=3, only=("geodesic", "naive"))
        >>> options.rows, options.count, options.training.epochs
        (('geodesic', 'naive'), 5, 3)
    """

    stream: str = option(
        "split-digits",
        "name of the stream: " + ", ".join(STREAMS),
        choices=tuple(STREAMS),
        positional=True,
    )
    scenario: str | None = option(
        None,
        "meaning of a split stream: class (default), domain or task incremental",
        group="stream",
        choices=SCENARIOS,
    )
    experiences: int | None = option(
        None, "number of tasks; default that of the stream", group="stream"
    )
    first_classes: int | None = option(
        None,
        "number of classes of a split stream's first task; the others are divided among the "
        "further tasks; default as many in each",
        group="stream",
        check=positive,
        recorded="given",
    )
    per_class: int | None = option(
        None,
        "largest number of training examples of each class in a task; default all",
        group="stream",
        check=positive,
        recorded="given",
    )
    only: tuple[str, ...] = option(
        (),
        "rows of the table, such as geodesic,ewc,replay-200; default all",
        group="table",
        choices=_usual_rows,
        closed=False,
        read=read_names,
    )
    skip: tuple[str, ...] = option(
        (),
        "rows to leave out, such as gem,joint",
        group="table",
        choices=_usual_rows,
        closed=False,
        read=read_names,
    )
    training: StreamTrainingOptions = piece(StreamTrainingOptions)
    baselines: BaselineOptions = piece(BaselineOptions)
    walk: StreamWalkOptions = piece(StreamWalkOptions)
    seed: int = option(
        0,
        "seed of permutations, the order of classes, weights and the order of examples",
        check=_seed,
    )
    data: PlaceOptions = piece(PlaceOptions)

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            OptionError: If a value cannot be used.
        """
        super().__post_init__()
        kind = self.kind
        if self.scenario is not None and not kind.scenarios:
            raise OptionError(
                f"`scenario` is the meaning of a split stream, and {self.stream} is none; leave it "
                "out"
            )
        if self.first_classes is not None:
            self._check_first_classes()
        elif kind.counts is not None and self.count not in kind.counts:
            counts = " or ".join(map(str, kind.counts))
            raise OptionError(
                f"{self.stream} has {counts} experiences, got `experiences` {self.count}; give "
                f"{counts}"
            )
        if not 2 <= self.count <= _MOST:
            raise OptionError(
                f"expected `experiences` from 2 to {_MOST}, got {self.count}; give another"
            )
        for name in (*self.only, *self.skip, *self.training.rate_of):
            check_known("row", name, self.all_rows)
        if not self.rows:
            raise OptionError("no row is left; give other rows as `only` or `skip`")
        self.settings()

    def _check_first_classes(self) -> None:
        left = self.kind.classes - (self.first_classes or 0)
        if not self.kind.scenarios:
            raise OptionError(
                f"`first_classes` is of split streams, and {self.stream} is none; leave it out"
            )
        if self.protocol != "class" or left < 1 or self.count < 2 or left % (self.count - 1):
            raise OptionError(
                f"expected `first_classes` of a class incremental stream that leave as many of "
                f"{self.kind.classes} classes to each further task, got {self.first_classes} with "
                f"`experiences` {self.count}; give 5 and 6, say"
            )

    @property
    def kind(self) -> StreamKind:
        """The named stream."""
        return STREAMS[self.stream]

    @property
    def count(self) -> int:
        """Number of experiences."""
        return self.kind.experiences if self.experiences is None else self.experiences

    @property
    def protocol(self) -> str:
        """``"class"``, ``"domain"`` or ``"task"``."""
        return (self.scenario or "class") if self.kind.scenarios else "domain"

    @property
    def all_rows(self) -> tuple[str, ...]:
        """Names of all rows that there are."""
        return tuple(stream_rows(self))

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows of the table."""
        wanted = self.only or self.all_rows
        return tuple(r for r in self.all_rows if r in wanted and r not in self.skip)

    def settings(self) -> dict[str, Any] | None:
        """Return the settings of the table's methods; None where no method has any.

        Raises:
            OptionError: If a method of the table cannot be used with these options.
        """
        methods = stream_rows(self)
        found: dict[str, Any] = {}
        for row in self.rows:
            if (settings := methods[row].settings) is not None:
                found |= settings(self)
        return found or None

    def recipe(self) -> dict[str, Any]:
        """Return all that decides the result, as JSON keeps it."""
        return {"stream": recorded(self)}
