"""Budgets of a stage's walk: limits on the loss of a network, or of one of its classes."""

from __future__ import annotations

from torch import Tensor

from geomerge.errors import OptionError, Problems
from geomerge.expert import Expert
from geomerge.merging.measuring import inputs_of
from geomerge.merging.presets.base import Preset, Stage
from geomerge.networks.batches import take
from geomerge.walks.constraints import Constraint, Constraints, KLConstraint, QuadraticConstraint
from geomerge.walks.state import WalkState

__all__ = ["refuse_budgets", "stage_constraints"]

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
            does not have.
    """
    allowed: dict[str, float] = {}
    bounds: dict[str, Constraint] = {}
    best: dict[str, float] = {}
    # A budget of one class has priority over that of all classes.
    budgets = sorted(_budgets(preset).items(), key=lambda item: "*" not in item[0])
    for bounded, number in budgets:
        for constraint in _constraints(preset, stage, bounded):
            name = constraint.name
            bounds[name], allowed[name] = constraint, number
            learned = preset.space[bounded.partition("/")[0]] in stage.learned
            best[name] = constraint.value(start) if learned else 0.0
    return Constraints(list(bounds.values()), allowed, best, state) if bounds else None


def refuse_budgets(preset: Preset, problems: Problems) -> None:
    """Refuse budgets that the data of a preset's stages does not allow.

    Args:
        preset: Preset that would walk.
        problems: Collector of a sentence for each.

    Raises:
        OptionError: If there is one and the problems are not collected.
    """
    for bounded in _budgets(preset):
        for stage in preset.stages:
            with problems.noted():
                _constraints(preset, stage, bounded)


def _budgets(preset: Preset) -> dict[str, float]:
    return dict(preset.options.choose.budget or {})


def _constraints(preset: Preset, stage: Stage, bounded: str) -> list[Constraint]:
    """Return the objects of a budget in a stage: a network, one of its classes, or each of them."""
    name, _, which = bounded.partition("/")
    expert = preset.space[name]
    if expert not in stage.experts:
        return []
    if expert.inputs is not None and not preset.bounds_predictions:
        return list(_losses(preset, expert, bounded))
    known = expert.sketch is not None or expert.inputs is not None
    known = known or name in preset.prepared.surrogates
    if which and preset.bounds_predictions:
        raise OptionError(
            f"`budget` {bounded} is of classes, and a sketch predicts the drift of {name} as a "
            f"whole; give {name}=NUMBER, or use `preset` joint with inputs"
        )
    if which or expert not in stage.kept or not known:
        raise OptionError(
            f"`budget` {bounded} needs inputs of {name}'s task; name it with `inputs`"
        )
    sketch = preset.prepared.sketch(expert)
    return [QuadraticConstraint(bounded, sketch.metric, expert.weights)]


def _losses(preset: Preset, expert: Expert, bounded: str) -> list[KLConstraint]:
    """Return the losses that a budget with inputs bounds."""
    inputs = inputs_of(preset.prepared.learned_on(expert))
    count = min(_INPUTS, inputs.at_once or _INPUTS, len(inputs))
    x, known = inputs.batch(slice(0, count)), preset.walker.targets(expert)
    targets = known[:count] if isinstance(known, Tensor) else known(x)
    name, _, which = bounded.partition("/")
    if which and len(targets) != count:
        raise OptionError(
            f"expected `budget` {name}=NUMBER of a network that predicts tokens, got {bounded} of "
            "a class; bound the whole network"
        )
    if not which:
        return [KLConstraint(bounded, expert.network, x, targets)]
    # The network's own output is taken as the class: labels are not needed.
    answers = targets.argmax(dim=1)
    first = preset.prepared.heads.offsets[name]
    wanted = sorted(set(answers.tolist())) if which == "*" else [int(which) + first]
    losses = []
    for label in wanted:
        chosen = answers == label
        if not bool(chosen.any()):
            raise OptionError(
                f"`budget` {bounded} names class {label - first}, which {name} does not have; "
                "name another"
            )
        own = take(x, chosen)
        losses.append(KLConstraint(f"{name}/{label - first}", expert.network, own, targets[chosen]))
    return losses
