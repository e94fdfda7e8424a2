"""Cost of walks, counted in forward passes of one input."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from geomerge.walks.state import WalkState

__all__ = ["METRIC_PASSES", "STEP_PASSES", "Cost"]

METRIC_PASSES = 5  # a forward pass and two backward ones
STEP_PASSES = 3  # a forward and a backward pass


class Cost:
    """Counter of forward passes of one input, for measurements and steps.

    A backward pass counts as two. A resumed walk computes the metric at its start and the preserved
    outputs again; these are counted once.
    """

    def __init__(self) -> None:
        self._known: dict[str, Any] = {"passes": 0, "once": []}

    @property
    def passes(self) -> int:
        """Number of passes of one input."""
        return int(self._known["passes"])

    def add(self, passes: int) -> None:
        """Count passes."""
        self._known["passes"] += passes

    def add_once(self, what: str, passes: int) -> None:
        """Count passes once, although a resumed walk repeats them.

        Args:
            what: Name of the computation.
            passes: Number of passes.
        """
        if what not in self._known["once"]:
            self._known["once"].append(what)
            self.add(passes)

    @contextmanager
    def free(self) -> Iterator[None]:
        """Ignore passes inside the context."""
        before = self.passes
        yield
        self._known["passes"] = before

    def kept_in(self, state: WalkState) -> None:
        """Store the count in a walk's state, continuing that of an interrupted walk."""
        if not state.values:
            state.values = copy.deepcopy(self._known)
        self._known = state.values

    def epochs(self, examples: int) -> float:
        """Return the cost in epochs of training, of three passes over the training data each.

        Args:
            examples: Number of training examples.
        """
        return self.passes / (STEP_PASSES * examples)
