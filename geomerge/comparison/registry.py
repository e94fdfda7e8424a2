"""What a method of the comparison is, and the decorator that puts one into the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.merging.sides import Side

__all__ = [
    "GROUPS",
    "Method",
    "MethodResult",
    "Predictor",
    "method",
    "registered",
]

# The parts of the table, in order; within a part methods stand by name.
GROUPS = ("networks", "weights", "activations", "matching", "training", "walks")

# Scores of the classes, shape (B, m), as the task of a side sees them.
Predictor: TypeAlias = Callable[[Side, Tensor], Tensor]


@dataclass(frozen=True)
class MethodResult:
    """What a method came to, and what it took.

    Attributes:
        answer: The weights of one network, shape (n,), or what predicts where that is not one.
        inputs: The networks whose tasks' training inputs were used.
        labels: The networks whose tasks' training labels were used.
        sketches: The networks whose sketches were used instead of inputs.
        samples: Inputs that were passed forwards, or forwards and backwards, to make it; those
            passed on the selection splits to choose are not counted.
        chosen: What was chosen on the selection splits, by name.
        curve: Points of weight space that led to it, for the picture.
    """

    answer: Tensor | Predictor
    inputs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sketches: tuple[str, ...] = ()
    samples: int = 0
    chosen: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Method:
    """A row of the table, ready to be made.

    Attributes:
        name: As on the command line.
        group: One of :data:`GROUPS`.
        about: What it does, for people.
        make: Does it.
    """

    name: str
    group: str
    about: str
    make: Callable[[Context], MethodResult]


_FOUND: dict[str, Method] = {}


def method(
    name: str, group: str, about: str
) -> Callable[[Callable[[Context], MethodResult]], Callable[[Context], MethodResult]]:
    """Put a function into the table of methods.

    Args:
        name: As on the command line.
        group: One of :data:`GROUPS`.
        about: What it does, for people: half a sentence, and the paper.

    Returns:
        The decorator. What it decorates gets a context, and raises ``NotApplicableError`` or
        ``OptionError`` with a sentence where it cannot be used, ``NumericalError`` where it fails.
    """

    def put(make: Callable[[Context], MethodResult]) -> Callable[[Context], MethodResult]:
        assert name not in _FOUND, f"two methods are called {name}"
        _FOUND[name] = Method(name, group, about, make)
        return make

    return put


def registered() -> dict[str, Method]:
    """Return the methods by name, in the order of the table."""
    return dict(sorted(_FOUND.items(), key=lambda item: (GROUPS.index(item[1].group), item[0])))
