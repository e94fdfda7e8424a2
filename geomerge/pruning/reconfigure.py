"""Reconfiguration: walks between configurations that remove and restore units."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.expert_like import ExpertLike
from geomerge.io.folders import place_of
from geomerge.loading import given_expert
from geomerge.monitor.progress import Progress
from geomerge.notebook import card, sentences, table
from geomerge.options import replace_options
from geomerge.paths.leg import points_stored
from geomerge.paths.path import WeightPath
from geomerge.pruning.goals import removal_of, unit_stages
from geomerge.pruning.gradual_removal import MOST_RATES
from geomerge.pruning.measure import PruneCurvePoint, PruneRow, curve_of, row_of
from geomerge.pruning.obs import magnitudes
from geomerge.pruning.options import POINTS, RankingOptions, ReconfigureOptions
from geomerge.pruning.plan import PlanStep, check_plan, load_plan, resolve
from geomerge.pruning.problem import PruneProblem, prepare_problem
from geomerge.pruning.results import PrunedExpert, pruned_expert, save_result, store_walk
from geomerge.pruning.schedule import restoring_stages
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.sparsify import SparsifyResult
from geomerge.pruning.units import unit_named
from geomerge.pruning.walk import PruneWalk, PruneWalker, WalkPlace
from geomerge.walks.plane import Stage
from geomerge.walks.state import StateFile, WalkState

__all__ = ["Configuration", "ReconfigureResult", "reconfigure"]


@dataclass(frozen=True, eq=False)
class Configuration:
    """Configuration of the network after a step of the plan.

    Attributes:
        name: Name of the step.
        expert: Network of the configuration.
        walked: Walk to the configuration.
        path: Path from the previous configuration.
        removed: Removed units, by layer.
        row: Measurements of the network.
        naive: Measurements of the dense network with the same units set to zero.
        curve: Measurements along the path.
        epochs: Cost of the walk in epochs of training.
    """

    name: str
    expert: Expert
    walked: PruneWalk
    path: WeightPath
    removed: Mapping[str, list[int]]
    row: PruneRow
    naive: PruneRow
    curve: list[PruneCurvePoint]
    epochs: float

    def module(self) -> nn.Module:
        """Return a new, trainable module with the weights of the configuration."""
        return self.expert.module()


@dataclass(frozen=True, eq=False)
class ReconfigureResult:
    """Result of a reconfiguration.

    Attributes:
        problem: Dense network, and inputs on which its function was preserved.
        options: Options of the reconfiguration.
        configurations: Configurations in the order of the plan.
        dense_row: Measurements of the dense network.
        notes: Assumptions and limits of the result, in sentences.
    """

    problem: PruneProblem
    options: ReconfigureOptions
    configurations: list[Configuration]
    dense_row: PruneRow
    notes: list[str]

    @property
    def dense(self) -> Expert:
        """Network at the start of the plan."""
        return self.problem.expert

    @property
    def expert(self) -> Expert:
        """Network of the last configuration."""
        return self.configurations[-1].expert

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracies on the test split by name of the configuration, in [0, 1]."""
        rows = [self.dense_row, *(one.row for one in self.configurations)]
        return {row.name: row.test for row in rows}

    def module(self) -> nn.Module:
        """Return a new, trainable module with the weights of the last configuration."""
        return self.expert.module()

    def __getitem__(self, name: str) -> Configuration:
        """Return the configuration with a name.

        Raises:
            KeyError: If there is no such configuration.
        """
        return {one.name: one for one in self.configurations}[name]

    def save(self, folder: str | Path) -> None:
        """Write all networks and paths, as ``NAME.safetensors`` and ``moves/NAME/path``.

        Args:
            folder: New or empty folder.

        Raises:
            RunError: If the folder has content or cannot be written.
        """
        experts = {one.name: one.expert for one in self.configurations}
        paths = {f"moves/{one.name}/path": one.path for one in self.configurations}
        save_result(folder, {"dense": self.dense, **experts}, paths)

    def __repr__(self) -> str:
        reached = ", ".join(f"{name} {100 * test:.2f} %" for name, test in self.accuracies.items())
        return f"<ReconfigureResult on {self.problem.task.name}, on test {reached}>"

    def _repr_html_(self) -> str:
        rows = [["dense", "0", f"{100 * self.dense_row.test:.2f}", "", ""]]
        rows += [
            [
                one.name, str(sum(map(len, one.removed.values()))), f"{100 * one.row.test:.2f}",
                f"{100 * one.naive.test:.2f}", f"{one.epochs:.2g}",
            ]
            for one in self.configurations
        ]  # fmt: skip
        headings = ("configuration", "units gone", "test (%)", "just cut out (%)", "epochs")
        return card(
            f"Reconfigured on {self.problem.task.name}",
            table(headings, rows),
            sentences(self.notes),
        )


def reconfigure(
    expert: ExpertLike | PrunedExpert | SparsifyResult | ReconfigureResult,
    plan: Sequence[PlanStep] | str | Path,
    options: ReconfigureOptions | None = None,
    *,
    folder: str | Path | None = None,
    work: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> ReconfigureResult:
    """Walk through the configurations of a plan, removing and restoring units.

    Args:
        expert: Network with its task. For the result of an earlier run, the plan starts from the
            sparse network and restores units of the dense one.
        plan: Steps, or the path of a YAML file with steps.
        options: Options; None takes the defaults.
        folder: Folder for the paths, each in a subfolder named like its step. None takes a
            temporary folder that is removed with the paths.
        work: Folder for the state of unfinished walks, as in
            :func:`~geomerge.pruning.sparsify.sparsify`.
        progress: Function called after each point of a walk.
        changes: Options by name, such as ``steps=100``; for a module or file also its data, as in
            :func:`~geomerge.pruning.sparsify.sparsify`: ``inputs``, ``arch``, ....

    Returns:
        Result with all configurations and the paths to them.

    Raises:
        GeomergeError: If inputs, options, data or plan are invalid.

    Example:
        >>> from torch import nn
        >>> import geomerge as gm
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> dense = gm.Expert.from_module(module, gm.load_task("digits"))
        >>> plan = [gm.PlanStep("small", {"1": 4}), gm.PlanStep("back", restore={"1": 2})]
        >>> result = gm.reconfigure(dense, plan, stages=1, steps=2, inputs=200, points=8)
        >>> {name: len(units) for name, units in result["back"].removed.items()}
        {'1': 2}
    """
    if not isinstance(expert, (PrunedExpert, SparsifyResult, ReconfigureResult)):
        expert = given_expert(expert, changes)
    options = replace_options(options or ReconfigureOptions(), **changes)
    steps = load_plan(plan) if isinstance(plan, (str, Path)) else list(plan)
    if isinstance(expert, (PrunedExpert, SparsifyResult, ReconfigureResult)):
        problem = prepare_problem(expert.dense, options.function, options.seed)
        start = expert.expert.weights.to(problem.weights)
    else:
        problem = prepare_problem(expert, options.function, options.seed)
        start = problem.weights
    check_plan(steps, problem.units, removed_units(problem.network, start, problem.units))
    _check_possible(problem, steps, options)
    place, temporary = place_of(folder)
    dense_row = row_of(problem, "dense", problem.weights)
    own = place / ".walks" if work is None else Path(work)
    points = points_stored(options.points, POINTS, problem.network.n)
    walker = PruneWalker(problem, options.walking, points, progress)
    configurations = []
    w = start
    for number, step in enumerate(steps, 1):
        at = own / f"move-{number}"
        file = StateFile(None if work is None else at / "state", problem.network.device)
        spot = WalkPlace(step.name, at, 0, file)
        reached = _move(walker, step, w, options, spot, place / step.name / "path")
        reached.path.keeper = temporary
        w = reached.expert.weights
        configurations.append(reached)
    if work is None:
        shutil.rmtree(own)
    return ReconfigureResult(problem, options, configurations, dense_row, problem.notes)


def _move(
    walker: PruneWalker,
    step: PlanStep,
    start: Tensor,  # (n,)
    options: ReconfigureOptions,
    place: WalkPlace,
    folder: Path,
) -> Configuration:
    """Walk to the configuration of one step."""
    problem, network = walker.problem, walker.problem.network
    spent = _epochs(problem)
    gone = removed_units(network, start, problem.units)
    stages = _stages(problem, step, gone, options, place.file.state.part("stages"))
    walked = walker.walk(start, stages, place)
    path = store_walk(problem, walked, folder, start, walker.points)
    expert = pruned_expert(problem, walked.weights)
    w = expert.weights
    removed = removed_units(network, w, problem.units)
    epochs = _epochs(problem) - spent
    return Configuration(
        step.name,
        expert,
        walked,
        path,
        removed,
        row_of(problem, step.name, w),
        row_of(problem, f"{step.name}, cut out", _cut_out(problem, removed)),
        curve_of(problem, path),
        epochs,
    )


def _epochs(problem: PruneProblem) -> float:
    return problem.cost.epochs(len(problem.task.train.labels))


def _check_possible(
    problem: PruneProblem, plan: Sequence[PlanStep], options: ReconfigureOptions
) -> None:
    """Check before the first walk that all steps can be carried out.

    Raises:
        OptionError: If a step restores units that the dense network does not have, or chooses
            among more units than a program of rates takes.
    """
    missing = removed_units(problem.network, problem.weights, problem.units)
    for step in plan:
        for name in step.restore:
            if unit_named(problem.units, name).layer in missing:
                raise OptionError(
                    f"step {step.name!r}: units of layer {name} are zero in the network that the "
                    "plan begins with, so they have nothing to come back to; begin with the dense "
                    "network, or with the folder of the run that removed them"
                )
        count = sum(unit_named(problem.units, name).count for name in step.remove)
        if options.choice == "rates" and count > MOST_RATES:
            raise OptionError(
                f"step {step.name!r}: `choice` rates takes at most {MOST_RATES} units to choose "
                "from; use `choice` greedy"
            )


def _stages(
    problem: PruneProblem,
    step: PlanStep,
    gone: Mapping[str, Sequence[int]],
    options: ReconfigureOptions,
    state: WalkState,
) -> list[Stage]:
    """Return the stages of a step, removal before restoration."""
    stages: list[Stage] = []
    count = options.walking.stages
    if step.remove:
        removal = removal_of(problem, step.remove, gone)
        ranking = RankingOptions(choice=options.choice)
        stages += unit_stages(problem, removal, gone, ranking, count, state)
    returning: dict[str, list[int]] = {}
    for name, wanted in step.restore.items():
        layer = unit_named(problem.units, name).layer
        chosen = resolve(wanted, gone.get(layer, ()))
        strongest = _strongest(problem, layer, gone.get(layer, ()))
        returning[layer] = strongest[:chosen] if isinstance(chosen, int) else list(chosen)
    if returning:
        stages += restoring_stages(
            problem.network, problem.weights, problem.units, returning, count
        )
    return stages


def _strongest(problem: PruneProblem, layer: str, gone: Sequence[int]) -> list[int]:
    """Return removed units in descending order of their norm in the dense network."""
    sizes = magnitudes(problem.network, problem.units[layer], problem.weights)
    return sorted(gone, key=lambda unit: (-float(sizes[unit]), unit))


def _cut_out(problem: PruneProblem, removed: Mapping[str, Sequence[int]]) -> Tensor:  # (n,)
    w = problem.weights.clone()
    for layer, units in removed.items():
        problem.units[layer].clear(w, units)
    return w
