"""Pick rules: the value of a point by its scores, drifts and distances.

A score is an accuracy, or of a language model the inverse of its perplexity, which rules compare
as a share of the expert's own.

All these numbers are measured on selection splits, never on test splits. A rule is a function of a
:class:`Score` with the decorator :func:`pick`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from string import ascii_lowercase
from typing import TypeAlias

from geomerge.errors import OptionError, did_you_mean
from geomerge.registry import Registry

__all__ = [
    "MARGIN",
    "PICKS",
    "USUAL",
    "Pick",
    "PickRule",
    "Score",
    "check_pick",
    "parse_pick",
    "pick",
]

MARGIN = 0.005  # difference from the best value within which the shortest walk is taken
USUAL = "max-min"  # rule where all tasks have labels


@dataclass(frozen=True)
class Score:
    """Measurements of one point; numbers by the name of a network, None where not measured.

    Attributes:
        accuracy: Score on each network's selection split, 0 to 1.
        drift: Functional change from each network, measured on its inputs or predicted by its
            sketch.
        distance: Distance |w - w_i| to each network, as a share of their sum.
        feasible: Whether the point keeps every budget of the walk.
        as_shares: Whether scores are compared as shares of the experts' own.
    """

    accuracy: Mapping[str, float | None] = field(default_factory=dict)
    drift: Mapping[str, float | None] = field(default_factory=dict)
    distance: Mapping[str, float] = field(default_factory=dict)
    feasible: bool = True
    as_shares: bool = False

    def compared(self, experts: Mapping[str, float | None]) -> dict[str, float]:
        """Return the scores as they are compared with each other.

        Args:
            experts: Score of each network on its own split.
        """
        now = dict(zip(self.accuracy, _known(self.accuracy.values()), strict=True))
        if not self.as_shares:
            return now
        own = dict(zip(now, _known(experts[name] for name in now), strict=True))
        return {name: value / own[name] for name, value in now.items()}


Experts: TypeAlias = Mapping[str, float | None]  # each network's accuracy on its own split
Value: TypeAlias = Callable[[Score, Experts], float]


def _always(score: Score) -> bool:
    return True


@dataclass(frozen=True)
class PickRule:
    """Order of points, the highest of which is picked.

    Attributes:
        name: Name, as in the options.
        value: Value of a point; the higher the better.
        needs: ``"accuracies"`` (of all networks), ``"drifts"`` or ``"one"`` (the accuracy of the
            network that the name begins with).
        margin: Difference to the best value within which the shortest path wins.
        meets: Whether a point meets the rule's condition; those that do come before all others.
    """

    name: str
    value: Callable[[Score], float]
    needs: str
    margin: float = MARGIN
    meets: Callable[[Score], bool] = _always

    @property
    def uses_labels(self) -> bool:
        """Whether the rule uses accuracies, which need labels."""
        return self.needs != "drifts"

    def level(self, score: Score) -> tuple[bool, bool]:
        """Return whether budgets and the condition are met, which rank before the value."""
        return score.feasible, self.meets(score)

    def rank(self, score: Score) -> tuple[bool, bool, float]:
        """Return the key by which points are ordered; the highest is the best."""
        return *self.level(score), self.value(score)

    def unmet(self, score: Score) -> str | None:
        """Return the note on a picked point that does not meet the condition; None if it does."""
        if self.meets(score):
            return None
        return f"no point of the path meets {self.name}; the nearest to it was picked"

    def problem(self, unlabelled: Sequence[str], drifts: bool) -> str | None:
        """Return the reason why the data does not allow the rule; None where it does.

        Args:
            unlabelled: Names of the networks without labelled data.
            drifts: Whether the drift from every network can be measured or predicted.
        """
        if self.needs == "accuracies" and unlabelled:
            return (
                f"`pick` {self.name} needs labelled data of all tasks, and there is none for "
                f"{' and '.join(unlabelled)}; name it with `task`, or use `pick` equal-drift or "
                "'a>=0.80'"
            )
        if self.needs == "one" and self.name[0] in unlabelled:
            return (
                f"`pick` {self.name} needs labelled data of {self.name[0]}, and there is none; "
                "name its task with `task`"
            )
        if self.needs == "drifts" and not drifts:
            return (
                f"`pick` {self.name} needs a sketch or inputs of each network, and there are none "
                f"for {' and '.join(unlabelled)}; make a sketch with geomerge sketch, or use "
                "`pick` 'a>=0.80'"
            )
        return None


@dataclass(frozen=True)
class Pick:
    """Registered pick rule, before the accuracies of the experts are known.

    Attributes:
        name: Name, as in the options.
        value: Value of a point, given the experts' accuracies; the higher the better.
        needs: Measurements that the rule needs, as in :class:`PickRule`.
        margin: Difference to the best value within which the shortest path wins.
    """

    name: str
    value: Value
    needs: str
    margin: float

    def rule(self, experts: Experts) -> PickRule:
        """Return the rule for experts of known accuracies."""
        return PickRule(self.name, partial(_valued, self.value, experts), self.needs, self.margin)


def _valued(value: Value, experts: Experts, score: Score) -> float:
    return value(score, experts)


PICKS: Registry[Pick] = Registry("pick", "geomerge.evaluation")


def pick(name: str, *, needs: str, margin: float = MARGIN) -> Callable[[Value], Value]:
    """Register a function of a score and the experts' accuracies as a pick rule.

    Args:
        name: Name, as in the options.
        needs: ``"accuracies"`` of all networks on their selection splits, or ``"drifts"``.
        margin: Difference to the best value within which the shortest path wins.
    """

    def put(value: Value) -> Value:
        PICKS.add(name, Pick(name, value, needs, margin))
        return value

    return put


@pick("max-min", needs="accuracies")
def max_min(score: Score, experts: Experts) -> float:
    """Largest smallest score."""
    return min(score.compared(experts).values())


@pick("balanced", needs="accuracies")
def balanced(score: Score, experts: Experts) -> float:
    """Smallest worst drop below the experts."""
    now = score.compared(experts)
    if score.as_shares:
        return min(now.values()) - 1
    before = _known(experts[name] for name in now)
    return -max(one - other for one, other in zip(before, now.values(), strict=True))


@pick("equal-drift", needs="drifts", margin=0.0)
def equal_drift(score: Score, experts: Experts) -> float:
    """Smallest largest functional change."""
    return -max(_known(score.drift.values()))


def parse_pick(text: str, experts: Experts) -> PickRule:
    """Parse the text of a pick rule.

    Args:
        text: ``max-min`` (largest smallest accuracy), ``balanced`` (smallest worst drop below the
            experts), ``equal-drift`` (smallest largest functional change), or ``"a>=0.80"``: of
            the points that meet it, the one best on the other tasks, or nearest to the other
            networks where those are not measured.
        experts: Accuracy of each network on its own selection split by name, None if unknown.

    Raises:
        OptionError: If the text is none of these.

    Example:
        >>> from geomerge.evaluation.pick import Score, parse_pick
        >>> rule = parse_pick("balanced", {"a": 0.98, "b": 0.90})
        >>> round(rule.value(Score({"a": 0.95, "b": 0.89})), 3)  # a has lost more
        -0.03
    """
    text = text.replace(" ", "")
    match = re.fullmatch(r"([a-z])>=(0?\.\d+|[01](?:\.0*)?)", text)
    if match is not None and match[1] in experts:
        return _floor(text, match[1], float(match[2]))
    if text not in PICKS:
        raise OptionError(
            f"unknown pick {text!r}{did_you_mean(text, PICKS)} (or a floor such as 'a>=0.80')"
        )
    return PICKS[text].rule(experts)


def check_pick(text: str) -> None:
    """Refuse a text that is no pick rule of any networks.

    Args:
        text: Text of an option.

    Raises:
        OptionError: If it is none.
    """
    parse_pick(text, dict.fromkeys(ascii_lowercase))


def _floor(text: str, name: str, least: float) -> PickRule:
    """Return the rule with a floor under one network's accuracy."""

    def meets(score: Score) -> bool:
        if name not in score.accuracy:  # a stage before that of the network
            return True
        (accuracy,) = _known([score.accuracy[name]])
        return accuracy >= least

    def value(score: Score) -> float:
        if name not in score.accuracy:
            measured = [v for v in score.accuracy.values() if v is not None]
            return min(measured) if measured else -max(score.distance.values())
        if not meets(score):  # the nearest to the floor
            return _known([score.accuracy[name]])[0]
        others = [v for other, v in score.accuracy.items() if other != name]
        if any(v is None for v in others):
            return -max(v for other, v in score.distance.items() if other != name)
        return min(_known(others))

    return PickRule(text, value, "one", meets=meets)


def _known(values: Iterable[float | None]) -> list[float]:
    found = list(values)
    known = [v for v in found if v is not None]
    assert len(known) == len(found), "the rule needs a number that was not measured"
    return known
