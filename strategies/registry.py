"""Methods of the stream table: declaration and registry, without Avalanche."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from geomerge.registry import Registry

if TYPE_CHECKING:
    from geomerge.strategies.learner import Learner, Training
    from geomerge.strategies.options import StreamOptions

__all__ = [
    "STREAM_GROUPS",
    "STREAM_METHODS",
    "StreamCase",
    "StreamMethod",
    "stream_method",
    "stream_rows",
]

# The parts of the table, in order; within a part methods stand as they are declared.
STREAM_GROUPS = ("geomerge", "plain", "averages", "statistics", "penalties", "memory", "bounds")


@dataclass(frozen=True)
class StreamCase:
    """One row of the table to be made.

    Attributes:
        row: Name of the row.
        training: Network before the first experience, and how it is trained.
        options: Options of the table, with strengths and sizes.
        experiences: Number of experiences of the stream.
        shape: Shape of one input.
        input_bytes: Number of bytes of one input as the data set stores it.
    """

    row: str
    training: Training
    options: StreamOptions
    experiences: int
    shape: tuple[int, ...] = ()
    input_bytes: int = 0


Make: TypeAlias = Callable[[StreamCase], "Learner"]
Rows: TypeAlias = Callable[["StreamOptions"], tuple[str, ...]]
Settings: TypeAlias = Callable[["StreamOptions"], Mapping[str, Any]]


@dataclass(frozen=True)
class StreamMethod:
    """A method of the stream table.

    Attributes:
        name: Name of the method, and of its row if it has one row.
        group: Part of the table, one of :data:`STREAM_GROUPS`.
        about: Description of the method, half a sentence.
        make: Function that returns the learner of a row.
        rows: Function of the options that returns the names of the method's rows; None is one row
            of the method's name.
        settings: Function of the options that returns the settings that the report lists, and
            raises ``OptionError`` where the method cannot be used with them; None lists none.
    """

    name: str
    group: str
    about: str
    make: Make
    rows: Rows | None = None
    settings: Settings | None = None


STREAM_METHODS: Registry[StreamMethod] = Registry(
    "method of streams",
    "geomerge.strategies.methods",
    order=lambda method: STREAM_GROUPS.index(method.group),
)


def stream_method(
    name: str,
    group: str,
    about: str,
    *,
    rows: Rows | None = None,
    settings: Settings | None = None,
) -> Callable[[Make], Make]:
    """Return a decorator that puts a function into the table of streams.

    A method is one function in a module of ``geomerge.strategies.methods``. What it needs of
    Avalanche is imported within the function, so that the names of rows are known without it::

        @stream_method("slow", "plain", "trained at a tenth of the learning rate")
        def slow(case: StreamCase) -> Learner:
            from geomerge.strategies.avalanche import Naive

            training = replace(case.training, rate=case.training.rate / 10)
            strategy, pace = make_strategy(training, Naive)
            return Learner(strategy, pace, "trained slowly")

    Args:
        name: Name of the method, and of its row.
        group: Part of the table, one of :data:`STREAM_GROUPS`.
        about: Description of the method, half a sentence, with the paper.
        rows: Function of the options that returns the names of several rows.
        settings: Function of the options that returns the settings that the report lists.
    """

    def put(make: Make) -> Make:
        STREAM_METHODS.add(name, StreamMethod(name, group, about, make, rows, settings))
        return make

    return put


def stream_rows(options: StreamOptions) -> dict[str, StreamMethod]:
    """Return the method of every row that options allow, in the order of the table."""
    found = {}
    for method in STREAM_METHODS.values():
        for row in (method.name,) if method.rows is None else method.rows(options):
            found[row] = method
    return found
