"""Progress of a walk or of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """How far a walk is, or a run in which walks follow one another.

    Attributes:
        walk: Its name, such as ``"toward a, damping 0.0001"``.
        step: Steps taken.
        steps: Steps it will take at most.
        accuracy: By network, on a few of its selection examples when last measured.
        whole: Whether it is the run: its steps are parts, such as methods, in which walks go, and
            ``walk`` names the one that goes now.
    """

    walk: str
    step: int
    steps: int
    accuracy: Mapping[str, float]
    whole: bool = False
