"""Recording of walks: points and state of each in a folder, progress with accuracies."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from geomerge.evaluation.drift import Probe
from geomerge.evaluation.measures import score
from geomerge.merging.walker import Walk
from geomerge.monitor.progress import Progress
from geomerge.paths.leg import Leg, record_leg
from geomerge.processes import alone, wait, writes
from geomerge.walks.state import StateFile, WalkState
from geomerge.walks.walk import WalkPoint
from geomerge.weight_space import WeightSpace

__all__ = ["Monitor", "Recorder", "Recording"]

EVERY = 20  # steps between two measurements
EXAMPLES = 500
_STATISTICS = 250  # inputs of each expert for the running statistics of a point that is shown


class Monitor:
    """Watcher of walks.

    Args:
        space: Networks whose accuracies are reported.
        progress: Function called after each step; None watches nothing and measures nothing.

    Attributes:
        device: Device of the walks' tensors.
    """

    def __init__(
        self, space: WeightSpace, progress: Callable[[Progress], None] | None = None
    ) -> None:
        self._call, self._space = progress, space
        self.device = space.network.device
        self._few = [(e.name, e.network, e.task.select.first(EXAMPLES)) for e in space if e.task]

    def watch(
        self, walk: Iterator[WalkPoint], name: str, steps: int, taken: int = 0
    ) -> Iterator[WalkPoint]:
        """Pass a walk on unchanged, or what is left of it after some steps."""
        if self._call is None:
            yield from walk
            return
        shares: dict[str, float] = {}
        for step, point in enumerate(walk, taken + 1):
            if not shares or step % EVERY == 1:
                with alone():  # another process may watch nothing
                    w = self._space.settle(point.weights, _STATISTICS)
                    shares = {key: score(net, w, few) for key, net, few in self._few}
            self._call(Progress(name, step, steps, shares))
            yield point


@dataclass(frozen=True)
class Recorder:
    """Place where walks are recorded, and how.

    Attributes:
        folder: Folder of the walks' own folders.
        monitor: Watcher of the walks.
        points: Most points stored of each walk, both ends counted.
        resumable: Whether each walk's state is written, so that an interrupted one goes on.
        title: Text before the names that the monitor shows.
    """

    folder: Path
    monitor: Monitor
    points: int
    resumable: bool = False
    title: str = ""

    def within(self, name: str) -> Recorder:
        """Return a recorder for a folder inside of this one."""
        return replace(self, folder=self.folder / name)

    def open(self, name: str) -> Recording:
        """Open the recording of a walk; one that was interrupted has the state that it had."""
        file = self.folder / name / "state" if self.resumable else None
        return Recording(self, self.folder / name, StateFile(file, self.monitor.device))


@dataclass(frozen=True)
class Recording:
    """One walk's recording.

    Attributes:
        recorder: Recorder that opened it.
        folder: Folder of the walk's points.
        file: File of its state.
    """

    recorder: Recorder
    folder: Path
    file: StateFile

    @property
    def state(self) -> WalkState:
        """State of the walk."""
        return self.file.state

    @property
    def diverged(self) -> bool:
        """Whether the walk is known to diverge."""
        return bool(self.state.values.get("diverged"))

    def leave(self) -> None:
        """Delete the points of a walk that diverged; its state says only that it did."""
        wait()
        if writes():
            shutil.rmtree(self.folder)
        self.file.replace(WalkState({"diverged": True}))

    def follow(
        self,
        walk: Walk,
        label: str,
        name: str,
        start: Tensor,  # (n,)
        measure: Probe | None,
    ) -> Leg:
        """Follow a walk to its end and return its leg.

        Args:
            walk: Walk, or what is left of it.
            label: Name that the monitor shows.
            name: Name of the leg in records.
            start: Point that the walk started from.
            measure: Probe of the steps' functional change; None without inputs.
        """
        told = self.recorder.title + label
        watched = self.recorder.monitor.watch(walk.points, told, walk.steps, self.file.steps)
        return record_leg(
            self.folder, name, start, watched, self.recorder.points, measure, self.file
        )
