"""Budgets of a stage's walk: limits on how much worse a network, or one of its classes, may get."""

from __future__ import annotations

from torch import Tensor

from geomerge.errors import OptionError
from geomerge.merging.presets.base import Preset, Stage
from geomerge.merging.sides import Side
from geomerge.merging.walker import Walker
from geomerge.networks.batches import take
from geomerge.walks.constraints import Constraint, Constraints, KLConstraint, QuadraticConstraint
from geomerge.walks.state import WalkState

__all__ = ["stage_constraints"]

_INPUTS = 1000


def stage_constraints(
    preset: Preset,
    stage: Stage,
    start: Tensor,  # (n,)
    state: WalkState,
) -> Constraints | None:
    """Return the budgets that bind a stage's walk; None without any.

    Args:
        preset: Preset that walks.
        stage: One of its stages.
        start: Point that the walk starts from.
        state: State of the budgets.

    Raises:
        OptionError: If a budget needs inputs that are not there, or names a class that a network
            never answers with.
    """
    allowed: dict[str, float] = {}
    kept: dict[str, Constraint] = {}
    best: dict[str, float] = {}
    # A class that is named has its own number, whatever all classes have.
    budgets = sorted(preset.options.budgets().items(), key=lambda item: "*" not in item[0])
    for text, number in budgets:
        name, _, which = text.partition("/")
        side = preset.space[name]
        if side not in stage.experts:
            continue
        if side.manifold is None:
            if which or side not in stage.kept or side.sketch is None:
                raise OptionError(
                    f"`budget` {text} needs inputs of {name}'s task; name it with `inputs`"
                )
            found: list[Constraint] = [QuadraticConstraint(text, side.sketch.metric, side.w)]
        else:
            found = list(_losses(side, text, preset.walker))
        for constraint in found:
            kept[constraint.name], allowed[constraint.name] = constraint, number
            learned = side in stage.learned
            best[constraint.name] = constraint.value(start) if learned else 0.0
    return Constraints(list(kept.values()), allowed, best, state) if kept else None


def _losses(side: Side, text: str, walker: Walker) -> list[KLConstraint]:
    """Return what a budget with inputs measures: all of them, or those of one class or of each."""
    assert side.manifold is not None
    count = min(_INPUTS, len(side.manifold))
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
                f"`budget` {text} speaks of class {k - shift}, which {name} never answers; name "
                "another"
            )
        own = take(x, chosen)
        found.append(KLConstraint(f"{name}/{k - shift}", side.network, own, targets[chosen]))
    return found
