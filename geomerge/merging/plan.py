"""What the sides bring -> preset, roles, candidates and the pick rule."""

from __future__ import annotations

from dataclasses import dataclass

from geomerge.crossover import PickRule, accuracy, parse_pick
from geomerge.errors import OptionError
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side, Sides

__all__ = ["Plan", "choose_rule", "plan_merge"]

SKETCH_DAMPINGS = (1e-5, 3e-5, 1e-4)
PAPER_DAMPINGS = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Plan:
    """What a merge will do.

    Attributes:
        preset: ``"sketch"`` or ``"paper"``.
        start: The side that the first walk starts from; its function is kept.
        goal: The other side.
        candidates: Dampings, one walk each.
    """

    preset: str
    start: Side
    goal: Side
    candidates: tuple[float, ...]

    @property
    def walked_on(self) -> Side:
        """The side whose inputs the candidates are walked on."""
        return self.goal if self.preset == "sketch" else self.start


def plan_merge(sides: Sides, options: MergeOptions) -> Plan:
    """Choose preset and roles from what the sides bring.

    Raises:
        OptionError: If what is there does not allow the preset, or any.
    """
    for goal, start in ((sides.a, sides.b), (sides.b, sides.a)):
        keepable = start.sketch or start.manifold or options.metric == "euclidean"
        explicit = options.preset == "sketch"
        known = start.sketch or start.manifold or explicit
        if options.preset != "paper" and goal.manifold and keepable and known:
            return Plan("sketch", start, goal, _settings(SKETCH_DAMPINGS, options))
    if options.preset == "sketch":
        raise OptionError(
            "the sketch preset needs inputs of one network's task and a sketch of the other "
            "network; name the inputs with --manifold and make the sketch with geomerge sketch"
        )
    for start, goal in ((sides.a, sides.b), (sides.b, sides.a)):
        if start.manifold:
            return Plan("paper", start, goal, _settings(PAPER_DAMPINGS, options))
    raise OptionError(
        "no inputs to walk on; name the task of one network with --manifold, such as "
        "--manifold mnist"
    )


def choose_rule(sides: Sides, plan: Plan, options: MergeOptions) -> PickRule:
    """Make the pick rule asked for, or the best that the data allows.

    Raises:
        OptionError: If the rule needs data that is not there.
    """
    experts = {
        side.name: accuracy(sides.network, side.w, side.task.select) if side.task else None
        for side in (sides.a, sides.b)
    }
    measured = all(value is not None for value in experts.values())
    drifts = plan.preset == "sketch" and plan.start.sketch is not None
    if options.pick is None:
        default = "max-min" if measured else "equal-drift" if drifts else "a>=0.80"
        if default == "a>=0.80" and experts["a"] is None:
            default = "b>=0.80"
        return parse_pick(default, experts["a"], experts["b"])
    rule = parse_pick(options.pick, experts["a"], experts["b"])
    if rule.needs == "accuracies" and not measured:
        missing = " and ".join(name for name, value in experts.items() if value is None)
        raise OptionError(
            f"--pick {rule.name} needs labelled data of both tasks and {missing} has none; name "
            "it with --task-a or --task-b, or use --pick equal-drift or 'a>=0.80'"
        )
    if rule.needs == "one" and experts[rule.name[0]] is None:
        raise OptionError(
            f"--pick {rule.name} needs labelled data of {rule.name[0]}; name it with "
            f"--task-{rule.name[0]}"
        )
    if rule.needs == "drifts" and not (drifts or (sides.a.task and sides.b.task)):
        raise OptionError(
            "--pick equal-drift needs a sketch or inputs of each side; make a sketch with "
            "geomerge sketch, or use --pick 'a>=0.80'"
        )
    return rule


def _settings(usual: tuple[float, ...], options: MergeOptions) -> tuple[float, ...]:
    if options.damping is not None:
        return (options.damping,)
    # Damping the Euclidean metric changes nothing.
    return (0.0,) if options.metric == "euclidean" else usual
