"""Options of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from geomerge.comparison.registry import METHODS
from geomerge.errors import OptionError
from geomerge.merging.options import MergeOptions
from geomerge.options import (
    FlatOptions,
    at_least,
    check_known,
    option,
    piece,
    read_names,
    recorded,
)

__all__ = ["CompareOptions"]

# Options of a merge that a comparison sets itself.
_DECIDED = (
    "preset",
    "metric",
    "damping",
    "learn",
    "learning_rate",
    "budget",
    "relax",
    "keep_zeros",
    "least",
    "weight",
)


@dataclass(frozen=True, init=False)
class CompareOptions(FlatOptions):
    """Options of a comparison; options of a merge can be given as keywords as well.

    Attributes:
        merge: Head, statistics, pick rule, seed and steps of the walks; ``pick`` is ``"balanced"``
            by default.
        only: Names of the rows; all if empty.
        skip: Names of rows to omit.
        max_samples: Largest number of samples for each method with training; None takes the number
            of the joint walk.

    Raises:
        OptionError: If an option is invalid.

    Example:
        >>> import geomerge as gm
        >>> options = gm.CompareOptions(only=("slerp", "average"), max_samples=5000, steps=20)
        >>> options.methods, options.merge.walk.steps
        (('average', 'slerp'), 20)
    """

    elsewhere: ClassVar[Mapping[str, str]] = {
        name: "gm.compare([a, b], options, {})" for name in MergeOptions.elsewhere
    }
    merge: MergeOptions = piece(MergeOptions)
    only: tuple[str, ...] = option(
        (),
        "rows of the table, such as slerp,regmean,joint-walk; default all",
        group="table",
        choices=METHODS.names,
        closed=False,
        read=read_names,
    )
    skip: tuple[str, ...] = option(
        (),
        "rows to leave out, such as joint-training,ewc",
        group="table",
        choices=METHODS.names,
        closed=False,
        read=read_names,
    )
    max_samples: int | None = option(
        None,
        "number of samples of each trained row; default that of joint-walk",
        group="table",
        flag="budget",
        formerly="budget",
        check=at_least(1),
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: If a value is invalid.
        """
        super().__post_init__()
        for name in (*self.only, *self.skip):
            check_known("method", name, METHODS.names())
        if not self.methods:
            raise OptionError("no method is left by `only` and `skip`; name one with `only`")
        usual, given = recorded(MergeOptions()), recorded(self.merge)
        for name in _DECIDED:
            if given.get(name) != usual.get(name):
                raise OptionError(f"a comparison chooses {name} itself; leave it out")

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the rows, in the order of the table."""
        return tuple(
            name
            for name in METHODS
            if (not self.only or name in self.only) and name not in self.skip
        )

    def recorded(self) -> dict[str, Any]:
        """Return the options that determine the result, as JSON values."""
        own = {"methods": list(self.methods), "max_samples": self.max_samples}
        return own | recorded(self.merge)
