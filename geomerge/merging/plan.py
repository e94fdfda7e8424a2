"""What the sides bring -> preset, roles, candidates and the pick rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from geomerge.errors import OptionError
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import PickRule, parse_pick
from geomerge.merging.options import MergeOptions
from geomerge.merging.sides import Side, Sides

__all__ = ["Plan", "choose_rule", "plan_merge"]

JOINT_DAMPINGS = (1e-3,)
SKETCH_DAMPINGS = (1e-5, 3e-5, 1e-4)
# Later networks are learned beside several kept ones: less is free, more must be held.
CHAIN_DAMPINGS = (3e-6, 1e-5, 3e-5)
PAPER_DAMPINGS = (3e-4, 1e-3, 3e-3)
LEARNED_FROM = 1e-6


@dataclass(frozen=True)
class Stage:
    """One walk, tried with several dampings.

    Attributes:
        kept: Sides whose functions the metric keeps; empty in a joint walk.
        learned: Sides that the walk goes toward: their functions, on their inputs, or in the
            paper's preset the weights of one.
        candidates: Dampings, one walk each.
    """

    kept: tuple[Side, ...]
    learned: tuple[Side, ...]
    candidates: tuple[float, ...]

    @property
    def sides(self) -> tuple[Side, ...]:
        """All sides that count in this stage."""
        return self.kept + self.learned


@dataclass(frozen=True)
class Plan:
    """What a merge will do.

    Attributes:
        preset: ``"joint"``: from between all networks toward all functions, on all inputs.
            ``"sketch"``: from one network, kept by its sketch, toward the functions of the others
            one after the other. ``"paper"``: from one network toward the weights of the other.
        start: The side that the first walk starts from; None in between all.
        goal: The side at the other end of the path.
        stages: The walks, in order.
    """

    preset: str
    start: Side | None
    goal: Side
    stages: tuple[Stage, ...]

    def begin(self, sides: Sides) -> Tensor:  # (n,)
        """Return where the first walk starts."""
        return self.start.w if self.start else sides.settled(sides.middle())

    @property
    def walked_on(self) -> tuple[Side, ...]:
        """The sides whose inputs the candidates are walked on."""
        if self.preset == "paper":
            return self.stages[0].kept
        return tuple(side for stage in self.stages for side in stage.learned)


def plan_merge(sides: Sides, options: MergeOptions) -> Plan:
    """Choose preset and roles from what the sides bring.

    Raises:
        OptionError: If what is there does not allow the preset, or any.
    """
    several = len(sides.all) > 2 or all(s.manifold for s in sides)
    if options.head == "separate" and options.metric in ("exact", "gram") and several:
        raise OptionError(
            f"--metric {options.metric} measures several tasks at once only in one block of "
            "outputs; use --metric kronecker with --head separate"
        )
    if options.preset in (None, "joint") and all(s.manifold for s in sides):
        stage = Stage((), tuple(sides), _settings(JOINT_DAMPINGS, options))
        return Plan("joint", None, sides.all[-1], (stage,))
    if options.preset == "joint":
        blind = " and ".join(s.name for s in sides if not s.manifold)
        raise OptionError(
            f"the joint preset needs inputs of every network's task and {blind} has none; name "
            "them with --manifold"
        )
    if options.preset in (None, "sketch"):
        plan = _sketch_plan(sides, options)
        if plan is not None:
            return plan
    if options.preset == "sketch":
        raise OptionError(
            "the sketch preset needs a sketch of one network and inputs of every other's task; "
            "name the inputs with --manifold and make the sketch with geomerge sketch"
        )
    if len(sides.all) > 2:
        raise OptionError(
            "more than two networks need inputs of every network's task but one, and a sketch of "
            "that one, which comes last; name the inputs with --manifold"
        )
    if options.learn is not None:
        raise OptionError(
            "--learn damping needs a walk toward functions, and what is there allows the paper "
            "preset only; give a sketch or the inputs of the other network"
        )
    a, b = sides
    for start, goal in ((a, b), (b, a)):
        if start.manifold:
            stage = Stage((start,), (goal,), _settings(PAPER_DAMPINGS, options))
            return Plan("paper", start, goal, (stage,))
    raise OptionError(
        "no inputs to walk on; name the task of one network with --manifold, such as "
        "--manifold mnist"
    )


def _sketch_plan(sides: Sides, options: MergeOptions) -> Plan | None:
    """Start at an end of the path, the last network rather than the first."""
    first, *_, last = sides
    for start, goal in ((last, first), (first, last)):
        others = [s for s in sides.all[::-1] if s is not start]
        if start is first:
            others.reverse()
        euclidean = options.metric == "euclidean" and options.preset == "sketch"
        keepable = start.sketch or start.manifold or euclidean
        if not keepable or not all(s.manifold for s in others):
            continue
        stages, kept = [], [start]
        for side in others:
            usual = SKETCH_DAMPINGS if len(kept) == 1 else CHAIN_DAMPINGS
            stages.append(Stage(tuple(kept), (side,), _settings(usual, options)))
            kept.append(side)
        return Plan("sketch", start, goal, tuple(stages))
    return None


def choose_rule(sides: Sides, plan: Plan, options: MergeOptions) -> PickRule:
    """Make the pick rule asked for, or the best that the data allows.

    Raises:
        OptionError: If the rule needs data that is not there.
    """
    experts = {
        side.name: accuracy(side.network, side.w, side.task.select) if side.task else None
        for side in sides
    }
    missing = [name for name, value in experts.items() if value is None]
    drifts = plan.preset == "sketch" and plan.start is not None and plan.start.sketch is not None
    if options.pick is None:
        text = "max-min" if not missing else "equal-drift" if drifts else None
        if text is None:
            known = [name for name in experts if name not in missing]
            text = f"{known[0]}>=0.80" if known else "equal-drift"
        return parse_pick(text, experts)
    rule = parse_pick(options.pick, experts)
    if rule.needs == "accuracies" and missing:
        raise OptionError(
            f"--pick {rule.name} needs labelled data of all tasks and {' and '.join(missing)} has "
            "none; name it with --task NETWORK=TASK, or use --pick equal-drift or 'a>=0.80'"
        )
    if rule.needs == "one" and rule.name[0] in missing:
        raise OptionError(
            f"--pick {rule.name} needs labelled data of {rule.name[0]}; name it with "
            f"--task {rule.name[0]}=TASK"
        )
    if rule.needs == "drifts" and not (drifts or all(s.task for s in sides)):
        raise OptionError(
            "--pick equal-drift needs a sketch or inputs of each network; make a sketch with "
            "geomerge sketch, or use --pick 'a>=0.80'"
        )
    return rule


def _settings(usual: tuple[float, ...], options: MergeOptions) -> tuple[float, ...]:
    if options.damping is not None:
        return (options.damping,)
    if options.learn == "damping":
        return (LEARNED_FROM,)
    # Damping the Euclidean metric changes nothing.
    return (0.0,) if options.metric == "euclidean" else usual
