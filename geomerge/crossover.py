"""Points of a walk x the selection splits of two tasks -> the network where the tasks balance.

Nothing here ever sees a test split when it picks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from geomerge.errors import OptionError, did_you_mean
from geomerge.network import Network
from geomerge.tasks import Split

__all__ = ["PICKS", "PickRule", "Score", "accuracy", "parse_pick", "search"]

PICKS = ("max-min", "balanced", "equal-drift")
COARSE = 12  # points measured first; then those around the best


@dataclass(frozen=True)
class Score:
    """What is known of one point, each number None where it could not be measured.

    Attributes:
        a: Accuracy on a's selection split, 0 to 1.
        b: Accuracy on b's selection split.
        drift_a: Functional change from network a on a's inputs, measured.
        drift_b: Functional change from network b, predicted by its sketch or measured.
        toward_b: How far along toward b, growing.
    """

    a: float | None = None
    b: float | None = None
    drift_a: float | None = None
    drift_b: float | None = None
    toward_b: float = 0.0


@dataclass(frozen=True)
class PickRule:
    """A rule that gives every point a value; the highest is picked.

    Attributes:
        name: As on the command line.
        value: The value of a point.
        needs: ``"accuracies"`` (of both), ``"drifts"`` or ``"one"`` (the named accuracy).
        margin: Of candidates whose values lie this near to the best the shortest path wins.
    """

    name: str
    value: Callable[[Score], float]
    needs: str
    margin: float = 0.005


def accuracy(
    network: Network,
    w: Tensor,  # (n,)
    split: Split,
    batch: int = 2000,
) -> float:
    """Return the share of a split that the network labels correctly, in [0, 1]."""
    right = 0
    for x, y in zip(split.inputs.batches(batch), split.labels.split(batch), strict=True):
        right += int((network.logits(w, x).argmax(dim=1) == y).sum())
    return right / len(split.labels)


def parse_pick(text: str, expert_a: float | None, expert_b: float | None) -> PickRule:
    """Make the rule that a name stands for.

    Args:
        text: ``max-min`` (largest smaller accuracy), ``balanced`` (smallest worst drop below the
            experts), ``equal-drift`` (smallest larger functional change), or ``"a>=0.80"``: of
            the points that meet it, the one best on the other task, or nearest to its network
            where that task is not measured.
        expert_a: Accuracy of a on its own selection split, None if unknown.
        expert_b: The same for b.

    Returns:
        The rule.

    Raises:
        OptionError: If the text is none of these.
    """
    text = text.replace(" ", "")
    if text == "max-min":
        return PickRule(text, lambda s: min(_known(s.a), _known(s.b)), "accuracies")
    if text == "balanced":
        return PickRule(
            text,
            lambda s: -max(_known(expert_a) - _known(s.a), _known(expert_b) - _known(s.b)),
            "accuracies",
        )
    if text == "equal-drift":
        return PickRule(text, lambda s: -max(_known(s.drift_a), _known(s.drift_b)), "drifts", 0.0)
    match = re.fullmatch(r"([ab])>=(0?\.\d+|[01](?:\.0*)?)", text)
    if match is None:
        raise OptionError(
            f"unknown pick {text!r}{did_you_mean(text, PICKS)} (or a floor such as 'a>=0.80')"
        )
    side, floor = match[1], float(match[2])

    def value(s: Score) -> float:
        kept, other = (s.a, s.b) if side == "a" else (s.b, s.a)
        if _known(kept) < floor:
            return _known(kept) - 2  # below every point that meets the floor
        nearness = s.toward_b if side == "a" else 1 - s.toward_b
        return nearness if other is None else other

    return PickRule(text, value, "one")


def search(
    marks: Sequence[int], measure: Callable[[int], Score], rule: PickRule
) -> tuple[int, dict[int, Score]]:
    """Find the best of a row of points: some spread over all of them first, then near the best.

    Args:
        marks: The points, in order.
        measure: Measures one of them.
        rule: Values a measured point.

    Returns:
        The best point, the first of equals, and all that was measured.
    """
    stride = max(1, len(marks) // COARSE)
    scores = {i: measure(marks[i]) for i in {*range(0, len(marks), stride), len(marks) - 1}}
    while stride > 1:
        best = max(sorted(scores), key=lambda i: rule.value(scores[i]))
        stride = (stride + 1) // 2
        for i in (best - stride, best + stride):
            if 0 <= i < len(marks) and i not in scores:
                scores[i] = measure(marks[i])
    best = max(sorted(scores), key=lambda i: rule.value(scores[i]))
    return marks[best], {marks[i]: score for i, score in sorted(scores.items())}


def _known(value: float | None) -> float:
    assert value is not None, "the rule needs a number that was not measured"
    return value
