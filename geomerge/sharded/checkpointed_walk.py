"""Walk of a sharded merge with its checkpoints: measured points, the pick, resumption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from geomerge.evaluation.pick import PickRule, Score
from geomerge.evaluation.search import first_of_best
from geomerge.monitor.progress import Progress
from geomerge.sharded.checkpoint import Saved, load_shards, save_shards
from geomerge.sharded.experts import Experts
from geomerge.sharded.layout import Layout
from geomerge.sharded.options import ShardedOptions
from geomerge.sharded.walk import ShardedWalk

__all__ = ["CheckpointedWalk"]


class CheckpointedWalk:
    """Walk toward the functions of all networks, from its last checkpoint on.

    A checkpoint has the weights and the momentum of its point, the weights of the best point so
    far, and those at which the metric was measured last, where that is not the next step's.

    Args:
        experts: Networks, all of them listened to.
        layout: Places of the weights of a step.
        saved: Checkpoint, empty before the first.
        options: Options of the merge.

    Attributes:
        points: Number of steps and accuracies on the selection splits of each measured point.
        rule: Rule by which a point is picked; None takes the last one.
    """

    def __init__(
        self, experts: Experts, layout: Layout, saved: Saved, options: ShardedOptions
    ) -> None:
        self._experts, self._network = experts, experts.network
        self._layout, self._saved = layout, saved
        self.points: list[dict[str, Any]] = list(saved.values.get("points", ()))
        # Of another number of processes they could differ by rounding, and with them the pick.
        experts.scores.update(saved.values.get("networks", {}))
        self.rule: PickRule | None = experts.rule(options.pick)
        self._each = options.interval * len(experts.teachers)  # steps between two checkpoints
        self._walk = ShardedWalk(
            self._network, layout, experts.teachers, options.walk(len(experts.teachers)),
            options.measuring, saved.values.get("step", 0),
        )  # fmt: skip

    @property
    def picked(self) -> int:
        """Number of steps of the best measured point so far, or of the last one."""
        if self.rule is None:
            return int(self.points[-1]["step"])
        return first_of_best({point["step"]: _score(point) for point in self.points}, self.rule)

    def note(self) -> str | None:
        """Return a note on a picked point that does not meet the rule's condition."""
        point = next(point for point in self.points if point["step"] == self.picked)
        return None if self.rule is None else self.rule.unmet(_score(point))

    def to_picked(self, progress: Callable[[Progress], None] | None = None) -> None:
        """Walk to the end, and set the network to the picked point.

        Args:
            progress: Function called after each step.

        Raises:
            NumericalError: If the walk diverges, in every process.
            RunError: If a checkpoint cannot be read or written.
        """
        walk, saved = self._walk, self._saved
        if saved.values:
            self._restore()
        else:
            self._checkpoint()
        while walk.taken < walk.steps:
            if walk.due:
                self._save("measured", self._weights())
                walk.measure()
            walk.step()
            if walk.taken % self._each == 0 or walk.taken == walk.steps:
                self._checkpoint()
            if progress is not None:
                now = self.points[-1]["select"]
                progress(Progress("toward all functions", walk.taken, walk.steps, now))
        if self.picked != walk.taken:
            load_shards(saved.folder("best"), self._weights(), self._network.mates)

    def _restore(self) -> None:
        """Go to the point of the last checkpoint, with the metric of its next step."""
        walk, saved, mates = self._walk, self._saved, self._network.mates
        ended = walk.taken == walk.steps
        if not walk.due and not ended and "measured" in saved.values["folders"]:
            load_shards(saved.folder("measured"), self._weights(), mates)
            walk.measure()
        momentum = dict(self._layout.returned(walk.momentum))
        load_shards(saved.folder("point"), self._state(momentum), mates)
        walk.momentum = self._layout.gathered(momentum.__getitem__)

    def _checkpoint(self) -> None:
        """Measure the point on the selection splits, and write what the walk goes on from."""
        taken = self._walk.taken
        self.points.append({"step": taken, "select": self._experts.accuracies("select")})
        if self.picked == taken:
            self._save("best", self._weights())
        self._save("point", self._state(dict(self._layout.returned(self._walk.momentum))))
        own = self._experts.scores
        self._saved.write({"step": taken, "points": self.points, "networks": own})

    def _save(self, part: str, tensors: Mapping[str, Any]) -> None:
        """Write the folder of a part, which the next checkpoint names."""
        name = f"{part}-{self._walk.taken}"
        save_shards(self._saved.place / name, tensors, self._network.mates)
        self._saved.pending[part] = name

    def _weights(self) -> dict[str, Any]:
        return {name: self._network.whole(name) for name in self._network.shapes}

    def _state(self, momentum: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return weights and momentum as distributed tensors, each under its name."""
        placed = {f"momentum.{k}": self._network.placed(k, part) for k, part in momentum.items()}
        return {f"weights.{name}": whole for name, whole in self._weights().items()} | placed


def _score(point: Mapping[str, Any]) -> Score:
    return Score(point["select"])
