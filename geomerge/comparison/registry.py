"""Methods of the comparison table: declaration, registry and result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.expert import Expert
from geomerge.networks.batches import Batch
from geomerge.registry import Registry

__all__ = [
    "GROUPS",
    "METHODS",
    "Make",
    "Method",
    "MethodResult",
    "Predictor",
    "method",
]

# Sections of the table in order; methods are sorted by name within a section.
GROUPS = ("networks", "weights", "activations", "matching", "training", "walks")

# Function of a task's network and a batch that returns scores of classes, shape (B, m).
Predictor: TypeAlias = Callable[[Expert, Batch], Tensor]


@dataclass(frozen=True)
class MethodResult:
    """Result of a method, with the data used.

    Attributes:
        answer: Weights of one network, shape (n,), or a predictor for other results.
        inputs: Names of the networks whose tasks' training inputs were used.
        labels: Names of the networks whose tasks' training labels were used.
        sketches: Names of the networks whose sketches were used in place of inputs.
        samples: Number of inputs in forward passes, with or without backward passes. Inputs of
            selection splits are not counted.
        chosen: Values chosen on the selection splits, by name.
        curve: Points of weight space on the way to the answer, for plots, shape (n,) each.
    """

    answer: Tensor | Predictor
    inputs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sketches: tuple[str, ...] = ()
    samples: int = 0
    chosen: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Tensor] = ()


# Function of a method. It raises ``NotApplicableError`` or ``OptionError`` if it is not applicable,
# and ``NumericalError`` if it fails.
Make: TypeAlias = Callable[[Context], MethodResult]


@dataclass(frozen=True)
class Method:
    """A row of the comparison table.

    Attributes:
        name: Name of the row.
        group: Section of the table, one of :data:`GROUPS`.
        about: Noun phrase that describes the method.
        make: Function of the method.
    """

    name: str
    group: str
    about: str
    make: Make


METHODS: Registry[Method] = Registry(
    "method",
    "geomerge.comparison.methods",
    order=lambda method: (GROUPS.index(method.group), method.name),
)


def method(name: str, group: str, about: str) -> Callable[[Make], Make]:
    """Return a decorator that registers a function as a method of the table.

    Args:
        name: Name of the row.
        group: Section of the table, one of :data:`GROUPS`.
        about: Noun phrase that describes the method, with the name of the paper's method.

    A method is a function in a module of :mod:`geomerge.comparison.methods`::

        @method("a-mostly", "weights", "nine tenths of a, one tenth of b")
        def a_mostly(context: Context) -> MethodResult:
            a, b = context.a.weights, context.b.weights
            return MethodResult(context.settled(torch.lerp(a, b, 0.1)))
    """

    def put(make: Make) -> Make:
        METHODS.add(name, Method(name, group, about, make))
        return make

    return put
