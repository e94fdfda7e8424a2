"""What a stage keeps: the metric of functions that it must not change, and budgets."""

from __future__ import annotations

from torch import Tensor

from geomerge.errors import OptionError
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan, Stage
from geomerge.merging.sides import Side, Sides
from geomerge.merging.walks import Walker
from geomerge.metrics import EuclideanMetric, Metric, combine, make_sketch
from geomerge.networks.batches import take
from geomerge.walks.constraints import Constraint, Constraints, KLConstraint, QuadraticConstraint
from geomerge.walks.state import WalkState

__all__ = ["kept_metric", "stage_budgets"]

_BUDGET_INPUTS = 1000


def kept_metric(
    walker: Walker,
    stage: Stage,
    start: Tensor,  # (n,)
    options: MergeOptions,
) -> Metric:
    """Return the metric of what a stage keeps: sketches where there are, else measured now."""
    if options.metric == "euclidean":
        return EuclideanMetric()
    if options.metric != "kronecker":
        blind = [s.name for s in stage.kept if s.manifold is None]
        if blind:
            raise OptionError(
                f"--metric {options.metric} needs inputs of {' and '.join(blind)}; name them with "
                "--manifold, or use --metric kronecker with its sketch"
            )
        return walker.metric_at(stage.kept, stage.candidates[0])(start)
    metrics = []
    for k, side in enumerate(stage.kept):
        # Sketches are worth something at the network that they were measured at, and along a walk
        # that kept its function; for a function learned on the way that is where it was learned.
        found = walker.sketches.get(side.name) if k else side.sketch
        if found is None:
            assert side.manifold is not None
            assert side.manifold_name is not None
            side.sketched_now = True
            found = make_sketch(
                side.network,
                start,
                side.manifold,
                side.manifold_name,
                output=options.output,
                seed=options.seed,
            )
            if k:
                walker.sketches[side.name] = found
            else:
                side.sketch = found
        metrics.append(found.metric)
    return combine(metrics)


def stage_budgets(
    sides: Sides,
    plan: Plan,
    stage: Stage,
    start: Tensor,  # (n,)
    metric: Metric | None,
    walker: Walker,
    options: MergeOptions,
    state: WalkState,
) -> Constraints | None:
    """Return the budgets that bind a stage's walk; None without any.

    Raises:
        OptionError: If a budget needs inputs that are not there, or names a class that a network
            never answers with.
    """
    allowed: dict[str, float] = {}
    kept: dict[str, Constraint] = {}
    best: dict[str, float] = {}
    # A class that is named has its own number, whatever all classes have.
    for text, number in sorted(options.budgets().items(), key=lambda item: "*" not in item[0]):
        name, _, which = text.partition("/")
        side = sides[name]
        if side not in stage.sides:
            continue
        if side.manifold is None:
            if which or metric is None or side.sketch is None:
                raise OptionError(
                    f"--budget {text} needs inputs of {name}'s task; name it with --manifold "
                    f"{name}=TASK"
                )
            found: list[Constraint] = [QuadraticConstraint(text, side.sketch.metric, side.w)]
        else:
            found = list(_losses(side, text, walker))
        for budget in found:
            kept[budget.name], allowed[budget.name] = budget, number
            learned = plan.preset != "paper" and side in stage.learned
            best[budget.name] = budget.value(start) if learned else 0.0
    return Constraints(list(kept.values()), allowed, best, state) if kept else None


def _losses(side: Side, text: str, walker: Walker) -> list[KLConstraint]:
    """Return what a budget with inputs measures: all of them, or those of one class or of each."""
    assert side.manifold is not None
    count = min(_BUDGET_INPUTS, len(side.manifold))
    x, targets = side.manifold.batch(slice(0, count)), walker.targets(side)[:count]
    name, _, which = text.partition("/")
    if not which:
        return [KLConstraint(text, side.network, x, targets)]
    # The network's own answer counts as the class: labels are not needed.
    answers = targets.argmax(dim=1)
    shift = side.offset
    wanted = sorted(set(answers.tolist())) if which == "*" else [int(which) + shift]
    found = []
    for k in wanted:
        chosen = answers == k
        if not bool(chosen.any()):
            raise OptionError(
                f"--budget {text} speaks of class {k - shift}, which {name} never answers; name "
                "another"
            )
        found.append(
            KLConstraint(f"{name}/{k - shift}", side.network, take(x, chosen), targets[chosen])
        )
    return found
