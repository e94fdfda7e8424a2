"""What a merge comes to, and how a notebook shows it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from geomerge.evaluation.pick import PickRule
from geomerge.io.checkpoint import Checkpoint
from geomerge.merging.options import MergeOptions
from geomerge.merging.presets.base import Preset
from geomerge.merging.relaxing import LegRelaxed
from geomerge.merging.sides import Sides
from geomerge.merging.stages import Candidate, PickedStage
from geomerge.notebook import Curve, card, drawing, table
from geomerge.paths.path import WeightPath

__all__ = ["Merge"]


@dataclass
class Merge:
    """The outcome of a merge.

    Attributes:
        options: How, with a metric that fits the memory.
        sides: The networks and what they brought.
        preset: Preset that walked.
        rule: How the point was picked.
        stages: Walks with their picks, in order.
        path: The path from the first network to the last.
        t: Where on the path the crossover lies.
        w: The crossover's weights, shape (n,).
        relaxed: What relaxing each leg did; empty if the path was not relaxed.
    """

    options: MergeOptions
    sides: Sides
    preset: Preset
    rule: PickRule
    stages: list[PickedStage]
    path: WeightPath
    t: float
    w: Tensor
    relaxed: list[LegRelaxed]

    @property
    def picked(self) -> Candidate:
        """The candidate that the crossover was picked from."""
        return self.stages[-1].chosen

    @property
    def diagonal_only(self) -> tuple[str, ...]:
        """Tensors of which the metric knows only the diagonal."""
        return self.stages[-1].walked.diagonal_only

    @property
    def accuracies(self) -> dict[str, float | None]:
        """The crossover's accuracy on each network's selection split."""
        found = self.picked.score.accuracy
        return {side.name: found[side.name] for side in self.sides if side.name in found}

    def checkpoint(self) -> Checkpoint:
        """Return the crossover network, ready to save."""
        return self.path.checkpoint(self.t)

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {_percent(value)}" for name, value in self.accuracies.items())
        return (
            f"<Merge of {', '.join(self.accuracies)} ({self.preset.name}): crossover at t = "
            f"{self.t:.4g}, picked by {self.rule.name}; on the selection splits {found}>"
        )

    def _repr_html_(self) -> str:
        chosen = self.picked
        networks = [
            [s.name, s.task.name if s.task else "not known", _percent(self.accuracies[s.name])]
            for s in self.sides
        ]
        walks = [
            [f"{c.damping:g}", f"{c.length:.4g}", f"{c.value:.4f}", "kept" if c is chosen else ""]
            for c in self.stages[-1].candidates
        ]
        return card(
            f"{self.preset.name} merge: crossover at t = {self.t:.4g}, picked by {self.rule.name}",
            table(("network", "task", "accuracy of the crossover (selection)"), networks),
            _walk(chosen),
            table(("damping", "length up to the pick", f"value ({self.rule.name})", ""), walks),
        )


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


def _walk(chosen: Candidate) -> str:
    """Draw the accuracies that the pick saw along the walk that was kept."""
    total = max((record.length for record in chosen.steps), default=0.0)
    if not total:
        return ""
    at = {0: 0.0, **{record.step: record.length / total for record in chosen.steps}}
    curves = []
    for name in sorted(chosen.score.accuracy):
        seen = [(at[step], score.accuracy[name]) for step, score in chosen.seen.items()]
        points = [(x, y) for x, y in seen if y is not None]
        if points:
            curves.append(Curve(f"accuracy on the task of {name} (selection)", points))
    where = ("picked", at[chosen.step])
    return drawing(curves, "share of the walk's length", "accuracy", mark=where) if curves else ""
