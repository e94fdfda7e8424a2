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

# The parts of the table, in order; within a part methods are sorted by name.
GROUPS = ("networks", "weights", "activations", "matching", "training", "walks")

# Scores of the classes, shape (B, m), by the network of a task.
Predictor: TypeAlias = Callable[[Expert, Batch], Tensor]


@dataclass(frozen=True)
class MethodResult:
    """Result of a method, with the data that it took.

    Attributes:
        answer: Weights of one network, shape (n,), or a predictor where the result is not one
            network.
        inputs: Names of the networks whose tasks' training inputs were used.
        labels: Names of the networks whose tasks' training labels were used.
        sketches: Names of the networks whose sketches were used in place of inputs.
        samples: Number of inputs passed forwards, or forwards and backwards. Inputs of the
            selection splits, which only choose, are not counted.
        chosen: Values chosen on the selection splits, by name.
        curve: Points of weight space on the way to the answer, for the picture, shape (n,) each.
    """

    answer: Tensor | Predictor
    inputs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sketches: tuple[str, ...] = ()
    samples: int = 0
    chosen: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Tensor] = ()


# A method itself: it raises ``NotApplicableError`` or ``OptionError`` with a sentence where it
# cannot be used, and ``NumericalError`` where it fails.
Make: TypeAlias = Callable[[Context], MethodResult]


@dataclass(frozen=True)
class Method:
    """A row of the comparison table.

    Attributes:
        name: Name of the row.
        group: Part of the table, one of :data:`GROUPS`.
        about: Description of the method, half a sentence.
        make: Function that applies the method to a context.
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
    """Return a decorator that puts a function into the table of methods.

    Args:
        name: Name of the row.
        group: Part of the table, one of :data:`GROUPS`.
        about: Description of the method, half a sentence, with the paper's usual name.

    A method is one function in a module of :mod:`geomerge.comparison.methods`::

        @method("a-mostly", "weights", "nine tenths of a, one tenth of b")
        def a_mostly(context: Context) -> MethodResult:
            a, b = context.a.weights, context.b.weights
            return MethodResult(context.settled(torch.lerp(a, b, 0.1)))
    """

    def put(make: Make) -> Make:
        METHODS.add(name, Method(name, group, about, make))
        return make

    return put
