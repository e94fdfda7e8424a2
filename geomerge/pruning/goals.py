"""Stages of a walk for a pruning goal: a sparsity, numbers of units, or a network size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from geomerge.errors import OptionError
from geomerge.pruning.cost import STEP_PASSES
from geomerge.pruning.flops import Sizes
from geomerge.pruning.gradual_removal import rate_stages
from geomerge.pruning.masks import SparsityPattern, parse_nm, prunable, sparsity
from geomerge.pruning.options import GoalOptions, RankingOptions
from geomerge.pruning.plan import PlanStep, Wanted, check_plan, resolve
from geomerge.pruning.problem import PruneProblem
from geomerge.pruning.removal import Removal, removal_stages
from geomerge.pruning.schedule import weight_stages
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.units import unit_named
from geomerge.walks.constraints import KLConstraint
from geomerge.walks.plane import Stage
from geomerge.walks.state import WalkState

__all__ = ["goal_stages", "removal_of", "unit_stages"]

BUDGET_INPUTS = 1000


def goal_stages(
    problem: PruneProblem,
    goal: GoalOptions,
    ranking: RankingOptions,
    stages: int,
    state: WalkState | None = None,
) -> list[Stage]:
    """Return the stages of a walk for a pruning goal.

    Args:
        problem: Network.
        goal: Weights or units to remove.
        ranking: Order of the removal.
        stages: Number of stages.
        state: State in which the stages store what they removed.

    Returns:
        Stages, for one walk only, since they store the removed weights.

    Raises:
        OptionError: If a layer would become empty, is unknown, or nothing is left to remove.
    """
    network = problem.network
    if not goal.removes_units:
        if ranking.budget is not None:
            raise OptionError("`budget` bounds the rates of units; give `remove`, or leave it out")
        pattern = _pattern(problem, goal)
        return weight_stages(network, problem.weights, pattern, stages, ranking.saliency, state)
    gone = removed_units(network, problem.weights, problem.units)
    if goal.kind == "remove":
        wanted = goal.remove or {}
        check_plan([PlanStep("remove", wanted)], problem.units, gone)
        removal = removal_of(problem, wanted, gone)
    else:
        removal = _size_removal(problem, goal, gone)
    return unit_stages(problem, removal, gone, ranking, stages, state)


def _pattern(problem: PruneProblem, goal: GoalOptions) -> SparsityPattern:
    if goal.nm is not None:
        return SparsityPattern(nm=parse_nm(goal.nm))
    share = goal.sparsity or 0.0
    now = sparsity(problem.weights, prunable(problem.network))
    if share <= now:
        raise OptionError(
            f"{100 * now:.1f} % of the weights are zero already, expected a `sparsity` over that, "
            f"got {share}; ask for more"
        )
    return SparsityPattern(share, goal.per_layer)


def unit_stages(
    problem: PruneProblem,
    removal: Removal,
    gone: Mapping[str, Sequence[int]],
    ranking: RankingOptions,
    stages: int,
    state: WalkState | None = None,
) -> list[Stage]:
    """Return the stages of a removal of units.

    Args:
        problem: Network.
        removal: Goal of the removal.
        gone: Units that are zero at the start, by :attr:`Units.layer`.
        ranking: Order of the removal.
        stages: Number of stages.
        state: State in which the stages store what they removed.
    """
    network = problem.network
    if ranking.choice != "rates":
        return removal_stages(network, removal, gone, stages, ranking.choice, state)
    constraints = class_constraints(problem) if ranking.budget is not None else []
    if constraints:
        problem.cost.add(STEP_PASSES * stages * min(BUDGET_INPUTS, len(problem.inputs)))
    bound = ranking.budget or float("inf")
    return rate_stages(network, removal, gone, stages, constraints, bound, state)


def class_constraints(problem: PruneProblem) -> list[KLConstraint]:
    """Return the loss of each class: mean KL to the dense network, by its predicted label."""
    sample = problem.inputs.sample(BUDGET_INPUTS, problem.seed)
    problem.cost.add(len(sample))
    x = sample.batch(slice(None))
    log_p = problem.network.logits_by_precision(problem.weights, x).log_softmax(dim=1)
    labels = log_p.argmax(dim=1)
    return [
        KLConstraint(f"class {int(k)}", problem.network, x[labels == k], log_p[labels == k])
        for k in labels.unique()
    ]


def removal_of(
    problem: PruneProblem, wanted: Mapping[str, Wanted], gone: Mapping[str, Sequence[int]]
) -> Removal:
    """Return the goal of a removal given by counts, shares or lists of units.

    Args:
        problem: Network.
        wanted: Units to remove, by the name of a layer.
        gone: Units that are already zero, by :attr:`Units.layer`.

    Raises:
        OptionError: If a layer is unknown or would become empty.
    """
    units, candidates, counts = {}, {}, {}
    for layer, what in wanted.items():
        one = unit_named(problem.units, layer)
        if one.layer in units:
            raise OptionError(
                f"{layer!r} has the same units as another layer that was named, "
                f"{' and '.join(one.layers)}; name one of them"
            )
        present = [k for k in range(one.count) if k not in set(gone.get(one.layer, ()))]
        chosen = resolve(what, present)
        count = chosen if isinstance(chosen, int) else len(chosen)
        if count >= len(present):
            raise OptionError(
                f"expected fewer than the {len(present)} units that layer {layer} has, got {count} "
                "to remove; leave at least one"
            )
        units[one.layer], counts[one.layer] = one, count
        candidates[one.layer] = present if isinstance(chosen, int) else list(chosen)
    for layer in gone:
        units.setdefault(layer, problem.units[layer])
        candidates.setdefault(layer, [])
        counts.setdefault(layer, 0)
    return Removal(units, candidates, counts)


def _size_removal(
    problem: PruneProblem, goal: GoalOptions, gone: Mapping[str, Sequence[int]]
) -> Removal:
    units = {one.layer: one for one in problem.units.values()}
    if not units:
        raise OptionError(
            "the network has no layer whose units can be removed; use `sparsity` instead"
        )
    sizes = Sizes(problem.network, units, problem.inputs.batch(slice(0, 1)))

    def size(removed: Mapping[str, int]) -> int:
        counts = sizes.without(removed)
        return counts.parameters if goal.flops is None else counts.flops

    whole = size({layer: len(found) for layer, found in gone.items()})
    share = goal.params if goal.flops is None else goal.flops
    assert share is not None
    candidates = {layer: list(range(one.count)) for layer, one in units.items()}
    return Removal(units, candidates, None, size, round((1 - share) * whole))
