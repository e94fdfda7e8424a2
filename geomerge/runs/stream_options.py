"""What the user of ``geomerge stream`` wants; nothing here needs Avalanche."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from geomerge.continual import ContinualOptions
from geomerge.errors import OptionError
from geomerge.options import check_known, check_positive, parse_size, recorded

__all__ = ["NAMES", "SCENARIOS", "Kind", "StreamOptions"]

SCENARIOS = ("class", "domain", "task")


class Kind(NamedTuple):
    """A named stream: how its experiences come about, from which tasks, and how many."""

    kind: str
    tasks: tuple[str, ...]
    experiences: int


NAMES = {
    "permuted-mnist": Kind("permuted", ("mnist",), 10),
    "permuted-digits": Kind("permuted", ("digits",), 5),
    "rotated-mnist": Kind("rotated", ("mnist",), 10),
    "split-mnist": Kind("split", ("mnist",), 5),
    "split-fmnist": Kind("split", ("fashion-mnist",), 5),
    "split-digits": Kind("split", ("digits",), 5),
    "mnist-fashion": Kind("datasets", ("mnist", "fashion-mnist"), 2),
}


@dataclass(frozen=True)
class StreamOptions:
    """What decides the results of a stream.

    Attributes:
        stream: One of :data:`NAMES`.
        scenario: ``"class"``, ``"domain"`` or ``"task"`` of a split stream; None is ``"class"``.
        experiences: How many; None is the usual number.
        only: Rows of the table; none is all of them.
        skip: Rows that are left out.
        epochs: Passes over each experience's examples, of each row; the walk's are among them.
        batch: Examples of a step.
        learning_rate: Of the first step of each experience; it falls linearly to zero.
        rates: ``ROW=RATE`` for rows that need another.
        arch: ``mlp-100`` has two hidden layers of 100 units.
        memory_examples: Of the rows with replay, one number each; GEM keeps as many as the first.
        ewc_lambda: Strength of elastic weight consolidation.
        si_lambda: Strength of synaptic intelligence.
        lwf_alpha: Strength of learning without forgetting.
        walk_epochs: Of the walk; None is one.
        walk_rate: Learning rate of the walk; None is the usual one.
        metric: Of the walk.
        labels: Whether the walk uses the experience's labels.
        examples: Unlabelled inputs that the walk's memory keeps of each experience.
        damping: mu of the walk; None is the usual one.
        budget: Of the drift of each remembered function.
        memory_limit: Most that the walk's memory may hold, such as ``"20MB"``.
        seed: Of permutations, the order of classes, weights and the order of examples.
        data_root: Folder of the data sets.
        download: Whether torchvision may fetch a missing one.
        device: Where to compute.
    """

    stream: str
    scenario: str | None = None
    experiences: int | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    epochs: int = 5
    batch: int = 128
    learning_rate: float = 0.05
    rates: tuple[str, ...] = ()
    arch: str = "mlp-100"
    memory_examples: tuple[int, ...] = (200, 500)
    ewc_lambda: float = 1000.0
    si_lambda: float = 100.0
    lwf_alpha: float = 1.0
    walk_epochs: int | None = None
    walk_rate: float | None = None
    metric: str = "kronecker"
    labels: bool = False
    examples: int = 0
    damping: float | None = None
    budget: float | None = None
    memory_limit: str | None = None
    seed: int = 0
    data_root: str | None = None
    download: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            OptionError: With the value, what was expected and what to do.
        """
        check_known("stream", self.stream, tuple(NAMES))
        check_known("scenario", self.scenario, SCENARIOS)
        named = NAMES[self.stream]
        if self.scenario is not None and named.kind != "split":
            raise OptionError(
                f"--scenario says how a split stream is meant, and {self.stream} is none; leave it "
                "out"
            )
        if named.kind == "split" and self.count not in (2, 5):
            raise OptionError(
                f"ten classes are split into 2 or 5 experiences, got --experiences {self.count}; "
                "give 2 or 5"
            )
        if named.kind == "datasets" and self.count != len(named.tasks):
            raise OptionError(
                f"{self.stream} has {len(named.tasks)} experiences, got --experiences "
                f"{self.count}; leave it out"
            )
        if not 2 <= self.count <= 100:
            raise OptionError(f"expected 2 to 100 --experiences, got {self.count}; give another")
        for flag in ("learning-rate", "ewc-lambda", "si-lambda", "lwf-alpha"):
            check_positive(flag, getattr(self, flag.replace("-", "_")))
        if self.epochs < 1 or self.batch < 1:
            raise OptionError(
                f"expected --epochs and --batch of 1 or more, got {self.epochs} and {self.batch}; "
                "correct them"
            )
        if not all(k > 0 for k in self.memory_examples) or not self.memory_examples:
            raise OptionError("expected positive numbers of --memory-examples; give 200")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"expected --seed from 0 to 2^63 - 1, got {self.seed}; give another")
        for name in (*self.only, *self.skip, *self.rate_of):
            check_known("row", name, self.all_rows)
        if not self.rows:
            raise OptionError("no row is left; give other --only or --skip")
        _ = self.hidden
        if "geodesic" in self.rows:
            _ = self.settings

    @property
    def kind(self) -> Kind:
        """How its experiences come about."""
        return NAMES[self.stream]

    @property
    def count(self) -> int:
        """Number of experiences."""
        return self.kind.experiences if self.experiences is None else self.experiences

    @property
    def protocol(self) -> str:
        """``"class"``, ``"domain"`` or ``"task"``."""
        return (self.scenario or "class") if self.kind.kind == "split" else "domain"

    @property
    def all_rows(self) -> tuple[str, ...]:
        """Names of all rows that there are."""
        replays = [f"replay-{k}" for k in self.memory_examples]
        plain = ("naive", "running-mean", "mean", "ewc", "si", "lwf", "gem")
        return ("geodesic", *plain, *replays, "joint")

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows of the table."""
        wanted = self.only or self.all_rows
        return tuple(r for r in self.all_rows if r in wanted and r not in self.skip)

    @property
    def rate_of(self) -> dict[str, float]:
        """Learning rates of rows that have their own.

        Raises:
            OptionError: If one is not ``ROW=RATE``.
        """
        found = {}
        for text in self.rates:
            name, _, number = text.partition("=")
            try:
                found[name] = float(number)
            except ValueError:
                raise OptionError(
                    f"expected --rate ROW=RATE such as ewc=0.01, got {text!r}"
                ) from None
            check_positive("rate", found[name])
        return found

    @property
    def hidden(self) -> int:
        """Units of each hidden layer.

        Raises:
            OptionError: If the architecture is not known.
        """
        found = re.fullmatch(r"mlp-([1-9][0-9]{0,3})", self.arch)
        if found is None:
            raise OptionError(
                f"unknown architecture {self.arch!r}, expected mlp-100, mlp-256 or another number "
                "of hidden units; give one"
            )
        return int(found[1])

    @property
    def expert_epochs(self) -> int:
        """Epochs of the expert; those of the walk are the others.

        Raises:
            OptionError: If none are left for one of them.
        """
        walk = 1 if self.walk_epochs is None else self.walk_epochs
        least = 0 if self.labels else 1  # with labels the walk can do without an expert
        if walk < 1 or self.epochs - walk < least:
            raise OptionError(
                f"--epochs {self.epochs} are the expert's and the walk's together, and {walk} are "
                "the walk's; give more --epochs, fewer --walk-epochs, --labels (then no expert is "
                "needed) or --skip geodesic"
            )
        return self.epochs - walk

    @property
    def settings(self) -> ContinualOptions:
        """Settings of the merge after each experience.

        Raises:
            OptionError: If one is out of its range.
        """
        usual = ContinualOptions()
        return ContinualOptions(
            epochs=self.epochs - self.expert_epochs,
            batch=self.batch,
            metric=self.metric,
            labels=self.labels,
            examples=self.examples,
            memory_limit=None if self.memory_limit is None else parse_size(self.memory_limit),
            seed=self.seed,
            damping=usual.damping if self.damping is None else self.damping,
            learning_rate=usual.learning_rate if self.walk_rate is None else self.walk_rate,
            budget=self.budget,
        )

    def recipe(self) -> dict[str, Any]:
        """Return all that decides the result, as JSON keeps it."""
        return {"stream": recorded(self)}
