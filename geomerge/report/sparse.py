"""Reports of sparsifications and reconfigurations: the content of ``report.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import geomerge
from geomerge.pruning.masks import prunable
from geomerge.pruning.measure import PruneCurvePoint, PruneRow
from geomerge.pruning.problem import PruneProblem
from geomerge.pruning.reconfigure import Configuration, ReconfigureResult
from geomerge.pruning.sparsify import SparsifyResult
from geomerge.pruning.walk import PruneWalk

__all__ = [
    "ReconfigureReport",
    "SparsifyReport",
    "reconfigure_report",
    "sparsify_report",
]


@dataclass(frozen=True)
class NetworkReport:
    """Network of a report.

    Attributes:
        file: Name of the file.
        sha256: Digest of the file.
        architecture: Name of the architecture; None if it is not known.
        task: Name of the task.
    """

    file: str
    sha256: str
    architecture: str | None
    task: str


@dataclass(frozen=True)
class DataUse:
    """Data that one part of a run used.

    Attributes:
        split: Name of the split.
        inputs: Number of inputs.
        labels: Whether the labels were used.
    """

    split: str
    inputs: int
    labels: bool


@dataclass(frozen=True)
class WalkReport:
    """A walk in a report.

    Attributes:
        name: Name of the walk.
        chosen: Whether the walk was kept.
        damping: Damping mu.
        steps: Number of steps against the drift.
        length: Length of the walk.
        agreement: Share of held-out inputs that keep the label of the dense network.
        shadow_prices: Largest shadow price of each constraint, by its name.
    """

    name: str
    chosen: bool
    damping: float
    steps: int
    length: float
    agreement: float
    shadow_prices: dict[str, float]


@dataclass(frozen=True)
class LayerReport:
    """Zeros of one layer.

    Attributes:
        name: Name of the layer's weight.
        weights: Number of its weights.
        zero: Number of those that are zero.
    """

    name: str
    weights: int
    zero: int


@dataclass(frozen=True)
class CostReport:
    """Cost of a run.

    Attributes:
        forward_passes: Number of forward passes of one input.
        epochs: Cost in epochs of training.
        meaning: Definition of these epochs.
    """

    forward_passes: int
    epochs: float
    meaning: str = "epochs of training, each three forward passes over the training split"


@dataclass(frozen=True)
class ConfigurationReport:
    """A configuration in a report.

    Attributes:
        name: Name of the step.
        removed: Removed units, by layer.
        result: Measurements of the network.
        cut_out: Measurements of the dense network with the same units at zero.
        path: Walk to the configuration.
        curve: Measurements along the path.
        epochs: Cost of the move in epochs of training.
    """

    name: str
    removed: dict[str, list[int]]
    result: PruneRow
    cut_out: PruneRow
    path: WalkReport
    curve: list[PruneCurvePoint]
    epochs: float


@dataclass(frozen=True)
class _PruneReport:
    """Facts that the reports of sparsifications and reconfigurations share.

    Attributes:
        geomerge: Version of geomerge.
        torch: Version of torch.
        recipe: Everything that decides the result.
        network: Dense network.
        metric: Name of the metric.
        output: Output whose change was measured.
        bn: Treatment of running statistics; None without any.
        dense_held_out: Accuracy of the dense network on held-out inputs.
        notes: Assumptions and limits of the result, in sentences.
        data: Use of data by the walk, by a last leg with labels, and by the choice of the path.
        cost: Cost of the run.
    """

    geomerge: str
    torch: str
    recipe: dict[str, Any]
    network: NetworkReport
    metric: str
    output: str
    bn: str | None
    dense_held_out: float
    notes: list[str]
    data: dict[str, DataUse | None]
    cost: CostReport

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``report.json``."""
        return asdict(self)


@dataclass(frozen=True)
class SparsifyReport(_PruneReport):
    """Report of a sparsification.

    Attributes:
        results: Measurements of the dense network, of baselines and of the sparse network.
        paths: All walks.
        curve: Measurements along the path.
        layers: Zeros by layer.
        removed: Removed units, by layer.
    """

    results: list[PruneRow]
    paths: list[WalkReport]
    curve: list[PruneCurvePoint]
    layers: list[LayerReport]
    removed: dict[str, list[int]]


@dataclass(frozen=True)
class ReconfigureReport(_PruneReport):
    """Report of a reconfiguration.

    Attributes:
        dense: Measurements of the dense network.
        configurations: Configurations in the order of the plan.
    """

    dense: PruneRow
    configurations: list[ConfigurationReport]


def sparsify_report(result: SparsifyResult, recipe: dict[str, Any]) -> SparsifyReport:
    """Return the report of a sparsification.

    Args:
        result: Sparsification.
        recipe: Everything that decides the result.
    """
    return SparsifyReport(
        **_facts(result.problem, result.notes, recipe, labels=result.options.labels),
        results=result.rows,
        paths=[_walk(walk, walk is result.chosen) for walk in result.walks],
        curve=result.curve,
        layers=_layers(result),
        removed={layer: list(units) for layer, units in result.removed.items()},
    )


def reconfigure_report(result: ReconfigureResult, recipe: dict[str, Any]) -> ReconfigureReport:
    """Return the report of a reconfiguration.

    Args:
        result: Reconfiguration.
        recipe: Everything that decides the result.
    """
    return ReconfigureReport(
        **_facts(result.problem, result.notes, recipe, labels=False),
        dense=result.dense_row,
        configurations=[_configuration(one) for one in result.configurations],
    )


def _configuration(reached: Configuration) -> ConfigurationReport:
    return ConfigurationReport(
        name=reached.name,
        removed={layer: list(units) for layer, units in reached.removed.items()},
        result=reached.row,
        cut_out=reached.naive,
        path=_walk(reached.walked, True),
        curve=reached.curve,
        epochs=reached.epochs,
    )


def _facts(
    problem: PruneProblem, notes: Sequence[str], recipe: dict[str, Any], labels: bool
) -> dict[str, Any]:
    expert, task = problem.expert, problem.task
    last_leg = DataUse("train", len(task.train.labels), True) if labels else None
    return {
        "geomerge": geomerge.__version__,
        "torch": torch.__version__,
        "recipe": recipe,
        "network": NetworkReport(
            Path(expert.source).name, expert.digest, expert.architecture, task.name
        ),
        "metric": problem.options.geometry.metric,
        "output": problem.output,
        "bn": problem.bn,
        "dense_held_out": problem.held_out.accuracy,
        "notes": list(notes),
        "data": {
            "walk": DataUse("train", len(problem.inputs), False),
            "last_leg": last_leg,
            "choice_of_path": DataUse("select", len(task.select.labels), False),
        },
        "cost": CostReport(problem.cost.passes, problem.cost.epochs(len(task.train.labels))),
    }


def _walk(walk: PruneWalk, chosen: bool) -> WalkReport:
    return WalkReport(
        name=walk.name,
        chosen=chosen,
        damping=walk.settings.damping,
        steps=walk.settings.steps,
        length=walk.leg.length,
        agreement=walk.agreement,
        shadow_prices=_prices(walk),
    )


def _prices(walk: PruneWalk) -> dict[str, float]:
    largest: dict[str, float] = {}
    for step in walk.leg.steps:
        for name, price in step.multipliers.items():
            largest[name] = max(largest.get(name, 0.0), price)
    return largest


def _layers(result: SparsifyResult) -> list[LayerReport]:
    w = result.expert.weights
    places = prunable(result.problem.network)
    parts = {name: w[place] for name, place in places.items()}
    return [LayerReport(name, len(part), int((part == 0).sum())) for name, part in parts.items()]
