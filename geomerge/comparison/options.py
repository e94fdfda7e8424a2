"""Options of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from geomerge.comparison.registry import METHODS
from geomerge.errors import OptionError
from geomerge.merging.options import MergeOptions
from geomerge.options import check_known, recorded

__all__ = ["CompareOptions"]

# Options of a merge that a comparison decides for itself.
_DECIDED = (
    "preset",
    "metric",
    "damping",
    "learn",
    "learning_rate",
    "budget",
    "relax",
    "keep_zeros",
)


@dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison.

    Attributes:
        merge: Head, statistics, pick, seed and steps of the walks; ``pick`` is
            ``"balanced"`` unless it says another.
        only: Methods of the table; all if empty.
        skip: Methods to leave out.
        budget: Most samples that each trained row may see; None takes as many as the joint walk.
    """

    merge: MergeOptions = field(default_factory=MergeOptions)
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    budget: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            OptionError: With the value, what was expected and what to do.
        """
        for name in (*self.only, *self.skip):
            check_known("method", name, METHODS.names())
        if not self.methods:
            raise OptionError("--only and --skip leave no method; name one with --only")
        if self.budget is not None and self.budget < 1:
            raise OptionError(
                f"expected a positive --budget of samples, got {self.budget}; try 100000"
            )
        usual, given = recorded(MergeOptions()), recorded(self.merge)
        for name in _DECIDED:
            if given[name] != usual[name]:
                raise OptionError(f"a comparison chooses {name} itself; leave it out")

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the rows, in the order of the table."""
        return tuple(
            name
            for name in METHODS
            if (not self.only or name in self.only) and name not in self.skip
        )

    def recorded(self) -> dict[str, Any]:
        """Return all that decides the result, as JSON keeps it."""
        return {"methods": list(self.methods), "budget": self.budget, **recorded(self.merge)}
