"""Plausibility of experts and their tasks: accuracies at chance, exchanged tasks, normalisation.

Nothing depends on these findings: each function returns sentences for the user.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from geomerge.data import Normalisation, Split, Task
from geomerge.data.inputs import UNLABELLED
from geomerge.data.normalisation import PLAIN
from geomerge.errors import GeomergeError
from geomerge.evaluation.measures import score, worded
from geomerge.expert import Expert
from geomerge.networks.batches import batch_size
from geomerge.networks.flops import flop_counter

__all__ = [
    "EXAMPLES",
    "FirstLook",
    "at_chance",
    "doubts",
    "few_examples",
    "first_look",
    "first_looks",
    "normalisation_doubt",
    "within_guesses",
]

EXAMPLES = 500  # examples of a selection split that are used before a merge
_OPERATIONS = 10**11  # multiplications of a pass over them at most, seconds of one core
_LEAST = 6  # examples that are used all the same
_SCREENED = 2 * 10**10  # multiplications of a first pass with another task or normalisation at most
_SCREEN = 1  # examples of such a pass at least; each of several networks passes its own
_CROSSED = 6  # examples of another task at least, by which chance can be told
FEW = 100  # examples of a split below which the number stands beside the accuracy
_SEEN = 1  # examples whose outputs are looked at
_ROUNDED = 1e-3  # distance of a sum of probabilities from 1
_RISE = 0.1  # rise of the accuracy from which another normalisation is proposed
_IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def at_chance(share: float, split: Split, count: int | None = None) -> bool:
    """Return whether a score is one of guesses: of one class within three deviations, of tokens.

    Tokens are guessed by how often each occurs, without the text before them.

    Args:
        share: Score, in [0, 1].
        split: Examples by which guesses are made.
        count: Number of them that the score was measured on; None means all.
    """
    if split.measure == "loss":
        tokens = split.labels[split.labels != UNLABELLED]
        often = torch.bincount(tokens).double()
        often = often[often > 0] / often.sum()
        return share <= float((often * often.log()).sum().exp())  # no text before a token is used
    guessed = float(torch.bincount(split.labels.cpu()).max()) / len(split.labels)
    return within_guesses(share, guessed, count or len(split.labels))


def within_guesses(share: float, guessed: float, count: int) -> bool:
    """Return whether an accuracy is within three deviations of one without a network.

    Args:
        share: Accuracy, in [0, 1].
        guessed: Share of the most frequent class.
        count: Number of examples.
    """
    bound: float = guessed + 3 * (guessed * (1 - guessed) / count) ** 0.5
    return share <= bound


@dataclass(frozen=True)
class FirstLook:
    """First examples of a selection split, and the score of its expert on them.

    Attributes:
        split: The selection split.
        examples: :data:`EXAMPLES` of it at most; fewer where the passes of the network take long.
        screen: The first of them, for passes that only exclude something.
        outputs: Logits of the very first, shape (R, m).
        score: Score on the examples, in [0, 1].
    """

    split: Split
    examples: Split
    screen: Split
    outputs: Tensor
    score: float

    @property
    def lost(self) -> bool:
        """Whether the score is one of guesses, on as many examples as tell the best from these."""
        count = len(self.examples.labels)
        return at_chance(self.score, self.split, count) and not at_chance(1.0, self.split, count)


def first_look(expert: Expert) -> FirstLook:
    """Measure an expert on the first examples of its task's selection split.

    Args:
        expert: Expert with a task.
    """
    assert expert.task is not None, "only tasks have examples"
    split = expert.task.select
    seen = split.inputs.batch(slice(0, _SEEN))
    with flop_counter() as counter:
        outputs = expert.network.logits(expert.weights, seen)
    cost = max(counter.get_total_flops() // (2 * batch_size(seen)), 1)
    examples, screen = (
        split.first(min(max(most // cost, least), EXAMPLES))
        for most, least in ((_OPERATIONS, _LEAST), (_SCREENED, _SCREEN))
    )
    found = score(expert.network, expert.weights, examples)
    return FirstLook(split, examples, screen, outputs, found)


def first_looks(experts: Sequence[Expert]) -> dict[str, FirstLook]:
    """Measure all experts that have a task, by name.

    Args:
        experts: Experts with their names.
    """
    return {expert.name: first_look(expert) for expert in experts if expert.task is not None}


def doubts(experts: Sequence[Expert], looks: Mapping[str, FirstLook]) -> list[str]:
    """Return doubts about several experts and their tasks.

    Args:
        experts: Experts with their names.
        looks: First look at each expert with a task, by name.

    Returns:
        Sentences: on equal weights, outputs that are no logits, accuracies at chance, tasks that
        seem to be exchanged, normalisations that a network was not trained with, small splits.
    """
    found = [*_same_weights(experts), *_probabilities(looks)]
    lost = [expert for expert in experts if expert.name in looks and looks[expert.name].lost]
    told: set[str] = set()
    for one, other in combinations(lost, 2):
        on_other = _well(one, looks[other.name])
        on_own = None if on_other is None else _well(other, looks[one.name])
        if on_other is None or on_own is None:
            continue
        told |= {one.name, other.name}
        assert one.task is not None
        assert other.task is not None
        shares = (looks[one.name].score, on_other, looks[other.name].score, on_own)
        tasks = (one.task, other.task, other.task, one.task)
        words = [worded(share, task.measure) for share, task in zip(shares, tasks, strict=True)]
        found.append(
            f"{one.name} answers {one.task.name} at chance ({words[0]}) and {other.task.name} "
            f"well ({words[1]}), {other.name} the other way round ({words[2]} and {words[3]}): "
            "exchanged? give each network its own task"
        )
    for expert in experts:
        if expert.task is None or expert.name in told:
            continue
        doubt = normalisation_doubt(expert, looks[expert.name])
        if doubt is not None:
            found.append(doubt)
        elif expert in lost:
            look = looks[expert.name]
            share = worded(look.score, expert.task.measure)
            found.append(
                f"{expert.name} answers {expert.task.name} at chance ({share} of "
                f"{len(look.examples.labels)} examples): check its task, its architecture and "
                "its normalisation"
            )
    return found + few_examples([expert.task for expert in experts if expert.task is not None])


def few_examples(tasks: Iterable[Task]) -> list[str]:
    """Return sentences on the resolution of accuracies, for tasks with small splits.

    Args:
        tasks: Tasks of networks.
    """
    found = []
    for task in tasks:
        select, test = task.select.predicted, task.test.predicted
        if min(select, test) < FEW:
            found.append(
                f"the accuracies on {task.name} are of {test} test and {select} "
                f"selection examples: one more that is right is {100 / test:.1f} and "
                f"{100 / select:.1f} points"
            )
    return list(dict.fromkeys(found))


def normalisation_doubt(expert: Expert, look: FirstLook | None = None) -> str | None:
    """Return a sentence where the accuracy is far higher with another normalisation.

    Args:
        expert: Expert with a task.
        look: First look at the expert; None measures it.
    """
    assert expert.task is not None, "only tasks have a normalisation"
    raw = expert.task.select.inputs.raw
    if not isinstance(raw, Tensor) or not (raw.is_floating_point() or raw.dtype == torch.uint8):
        return None
    if raw.dtype != torch.uint8 and expert.task.normalisation == PLAIN:
        return None  # floating-point inputs of an unknown scale
    look = first_look(expert) if look is None else look
    few, screen, own = look.examples, look.screen, look.score
    if own > 1 - _RISE:
        return None
    best, words = own + _RISE, None
    for other, kind in _others(raw):
        if other == expert.task.normalisation:
            continue
        count = len(screen.labels)
        while count < len(few.labels) and _normalised(expert, few.first(count), other) >= best:
            count *= 2
        if count < len(few.labels):
            continue
        found = _normalised(expert, few, other)
        if found >= best:
            best, words = found, (kind, other)
    if words is None:
        return None
    numbers = "/".join(",".join(f"{x:.4g}" for x in part) for part in (words[1].mean, words[1].std))
    name = expert.task.name
    return (
        f"{expert.name or expert.source} has {_percent(own)} of {name} right as it is normalised "
        f"here and {_percent(best)} {words[0]}, so it was hardly trained with this normalisation; "
        f"give `normalisation` {name}={numbers}"
    )


def _others(raw: Tensor) -> Iterator[tuple[Normalisation, str]]:
    """Yield usual normalisations of inputs, each with its description."""
    yield PLAIN, "without any normalisation"
    yield Normalisation((0.5,), (0.5,)), "with inputs scaled to [-1, 1]"
    if raw.dim() == 4 and raw.shape[1] == 3:
        yield _IMAGENET, "with ImageNet's"
    if raw.dtype == torch.uint8:
        yield Normalisation((0.0,), (1 / 255,)), "with bytes that are not scaled"


def _normalised(expert: Expert, split: Split, normalisation: Normalisation) -> float:
    """Return an expert's score on a split with another normalisation."""
    inputs = replace(split.inputs, normalisation=normalisation)
    return score(expert.network, expert.weights, Split(inputs, split.labels))


def _well(expert: Expert, other: FirstLook) -> float | None:
    """Return an expert's score on another's task; None where it cannot take it, or guesses.

    Where passes take long, very few examples are enough to tell that it guesses.
    """
    assert expert.task is not None, "only experts with a task are lost"
    own = expert.task.select
    if own.inputs.shape != other.split.inputs.shape or other.split.measure == "loss":
        first, classes = other.split.inputs.batch(slice(0, 1)), int(other.split.labels.max()) + 1
        try:
            expert.network.check_inputs(expert.weights, first, classes, "the other")
        except GeomergeError:
            return None
    share, count = 0.0, len(other.examples.labels)
    for some in dict.fromkeys([min(max(len(other.screen.labels), _CROSSED), count), count]):
        share = score(expert.network, expert.weights, other.examples.first(some))
        if at_chance(share, other.split, some):
            return None
    return share


def _same_weights(experts: Sequence[Expert]) -> Iterator[str]:
    for one, other in combinations(experts, 2):
        if one.network.shapes == other.network.shapes and one.weights.equal(other.weights):
            yield (
                f"{one.name} ({one.source}) and {other.name} ({other.source}) have the same "
                "weights, so there is nothing to merge; name another file if that was not meant"
            )


def _probabilities(looks: Mapping[str, FirstLook]) -> Iterator[str]:
    """Yield sentences on networks whose outputs are those of a softmax."""
    for name, look in looks.items():
        outputs = look.outputs
        shares = outputs.shape[1] > 1 and bool((outputs >= 0).all())
        if shares and bool(((outputs.sum(dim=1) - 1).abs() < _ROUNDED).all()):
            yield (
                f"the outputs of {name} are probabilities (none negative, their sum 1), "
                "expected logits, of which a softmax is taken here: let the network return what "
                "comes before its own"
            )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
