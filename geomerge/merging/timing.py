"""Times of a walk's parts, measured by its first steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torch import Tensor

from geomerge.evaluation.drift import Probe
from geomerge.merging.walker import Walk
from geomerge.paths.leg import record_leg
from geomerge.walks.walk import WalkPoint

__all__ = ["LEAST", "Timed", "run_for_a_moment"]

_SECONDS = 0.5  # seconds for which a walk is run
LEAST, _MOST = 3, 40  # of its steps
_AGAIN = 2.0  # seconds of a measurement from which it is not repeated
_STATES = 1.05  # factor for writing a walk's state, a twentieth of its time


class Timed(NamedTuple):
    """Seconds of the parts of a walk.

    Attributes:
        setup: What the first of several walks takes besides.
        first: Seconds before the first step: of measuring the metric.
        step: Seconds of a step.
        fall: Mean decrease of the distance in a step; None where the walk ends at once.
    """

    setup: float
    first: float
    step: float
    fall: float | None


def run_for_a_moment(
    walk: Callable[[], Walk],
    start: Tensor,  # (n,)
    measure: Probe | None,
    points: int,
) -> Timed:
    """Return the seconds of a walk's parts, from its first steps.

    A fast walk is begun twice, since the first time also sets up what later ones have.

    Args:
        walk: Function that returns the walk from its start.
        start: First point.
        measure: Probe of the steps' functional change; None without inputs.
        points: Largest number of stored points.
    """
    cold = _few_steps(walk, start, measure, points, _MOST)
    if cold.first > _AGAIN:
        return cold
    warm = _few_steps(walk, start, measure, points, LEAST)
    first = min(warm.first, cold.first)
    return cold._replace(setup=cold.first - first, first=first)


def _few_steps(
    walk: Callable[[], Walk],
    start: Tensor,  # (n,)
    measure: Probe | None,
    points: int,
    most: int,
) -> Timed:
    began = time.perf_counter()
    stamps: list[float] = []
    distances: list[float] = []

    def few() -> Iterator[WalkPoint]:
        for number, point in enumerate(walk().points, 1):
            distances.append(point.distance)
            yield point
            stamps.append(time.perf_counter())
            over = stamps[-1] - stamps[0] > _SECONDS and number >= LEAST
            if over or number >= most:
                return

    with TemporaryDirectory() as folder:
        record_leg(Path(folder), "timed", start, few(), points, measure)
    if len(stamps) < 2:  # there is nowhere to go
        return Timed(0.0, 0.0, 0.0, None)
    count = len(stamps) - 1
    step = (stamps[-1] - stamps[0]) / count
    first = max(stamps[0] - began - step, 0.0)
    return Timed(0.0, first, _STATES * step, (distances[0] - distances[-1]) / count)
