"""Options of a merge: preset, head and alignment, and pieces for metric, walk, pick and machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from geomerge.alignment import METHODS, ROTATIONS
from geomerge.data.batchnorm import BN
from geomerge.data.changed_images import AUGMENT
from geomerge.errors import OptionError
from geomerge.evaluation.pick import check_pick
from geomerge.expert_options import DataOptions
from geomerge.io.precision import dtype_option
from geomerge.merging.heads import HEADS
from geomerge.merging.least_drift import LEAST
from geomerge.merging.presets.registry import PRESETS
from geomerge.merging.vocabulary import VOCABULARIES
from geomerge.metrics import METRICS, MetricOptions
from geomerge.networks.autocast import precision_option
from geomerge.options import (
    FlatOptions,
    at_least,
    check_options,
    option,
    option_fields,
    parse_size,
    piece,
    positive,
)

__all__ = [
    "ALIGN",
    "LEARNABLE",
    "DriftOptions",
    "MachineOptions",
    "MergeOptions",
    "PickOptions",
    "WalkOptions",
    "budget_texts",
    "parse_budget",
    "parse_weights",
]

ALIGN = ("none", *METHODS, ROTATIONS)
LEARNABLE = ("damping",)
LEGS = ("walked", "straight")
POINTS = 64  # stored points of a leg


def parse_budget(texts: Sequence[str]) -> dict[str, float] | None:
    """Return budgets by their objects: ``"b"``, ``"b/3"`` for a class or ``"b/*"`` for each.

    Returns None where there is no text.

    Args:
        texts: Texts such as ``"b=0.02"``.

    Raises:
        OptionError: If one is not a name and a number that is not negative, or two are of one.
    """
    return _numbers(texts, r"[a-z](?:/(?:\d+|\*))?", "`budget` NETWORK=NUMBER such as b=0.02")


def parse_weights(texts: Sequence[str]) -> dict[str, float] | None:
    """Return weights by network, None where there is no text.

    Args:
        texts: Texts such as ``"a=2"``.

    Raises:
        OptionError: If one is not a name and a positive number, or two are of one network.
    """
    return _numbers(texts, "[a-z]", "`weight` NETWORK=NUMBER such as a=2")


def _numbers(texts: Sequence[str], name: str, form: str) -> dict[str, float] | None:
    """Return numbers by name from texts ``NAME=NUMBER``, None where there is no text."""
    found: dict[str, float] = {}
    for text in texts:
        match = re.fullmatch(rf"({name})=(\d*\.?\d+(?:e-?\d+)?)", text)
        if match is None or match[1] in found:
            raise OptionError(f"expected {form}, once for each, got {text!r}")
        found[match[1]] = float(match[2])
    return found or None


def budget_texts(budget: Mapping[str, float] | None) -> list[str]:
    """Return budgets as texts, as recipes and command lines have them."""
    return [f"{name}={number!r}" for name, number in (budget or {}).items()]


def _bounds(budget: Any) -> str | None:
    """Check budgets by network or class."""
    named = isinstance(budget, Mapping) and all(
        re.fullmatch(r"[a-z](/(\d+|\*))?", str(name)) and 0 <= number < float("inf")
        for name, number in budget.items()
    )
    return None if named else "numbers from 0 on by network or class, such as {'b/3': 0.02}"


def _weights(weights: Any) -> str | None:
    """Check weights by network."""
    named = isinstance(weights, Mapping) and all(
        re.fullmatch("[a-z]", str(name)) and 0 < number < float("inf")
        for name, number in weights.items()
    )
    return None if named else "positive numbers by network, such as {'a': 2.0}"


def _size(text: Any) -> str | None:
    parse_size(text)
    return None


@dataclass(frozen=True)
class WalkOptions:
    """Options of the walks between networks.

    Attributes:
        damping: Damping mu. If None, several values are tried and the best is kept.
        learning_rate: Learning rate of the first step; None takes the preset's.
        steps: Number of steps of each walk; None takes the preset's.
        learn: ``"damping"`` adjusts mu along one walk instead of trying several.
        keep_zeros: Whether weights that are zero in every network stay zero all along the path.
        augment: Random changes of the images of every batch of a walk toward functions:
            ``"shifts"``, or ``"flips"`` for shifts and flips; None leaves them.
        legs: Legs that close the path, from a network to the crossover: ``"walked"`` keeps the
            network's function on the way, ``"straight"`` is the line between them; None walks them
            for networks of fewer than a million weights. The crossover is the same.
    """

    damping: float | None = option(
        None, "damping mu; by default the best of several", group="walk", check=positive
    )
    learning_rate: float | None = option(
        None, "learning rate of the first step; default by preset", group="walk", check=positive
    )
    steps: int | None = option(
        None, "number of steps of each walk; default by preset", group="walk", check=at_least(1)
    )
    learn: str | None = option(
        None, "quantity learned during one walk instead of tried in several", group="walk",
        choices=LEARNABLE,
    )  # fmt: skip
    keep_zeros: bool = option(
        False, "constraint that weights which are zero in every network stay zero", group="walk"
    )
    augment: str | None = option(
        None, "random changes of the images that a walk learns on: shifts, or shifts and flips",
        group="walk", choices=AUGMENT, recorded="given",
    )  # fmt: skip
    legs: str | None = option(
        None, "legs from the networks to the crossover, walked or straight lines; default straight "
        "from a million weights on", group="walk", choices=LEGS, recorded="given",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        check_options(self)


@dataclass(frozen=True)
class PickOptions:
    """Options of the pick: its rule, and bounds on the points that can be picked.

    Attributes:
        pick: ``"max-min"``, ``"balanced"``, ``"equal-drift"`` or a floor such as ``"a>=0.80"``;
            None takes what the data allows.
        budget: Bounds on the increase of a network's loss along the walk, by network:
            ``{"b": 0.02}``; ``"b/3"`` bounds one class of b, ``"b/*"`` each.
    """

    pick: str | None = option(
        None, "pick rule: max-min, balanced, equal-drift, or a floor such as 'a>=0.80'",
        group="pick", check=check_pick,
    )  # fmt: skip
    budget: Mapping[str, float] | None = option(
        None, "bound on the increase of a network's or class's loss: b=0.02, b/3=0.02, b/*=0.02",
        group="pick", check=_bounds, read=parse_budget, write=budget_texts,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        check_options(self)


@dataclass(frozen=True)
class DriftOptions:
    """Options of the mean in the metrics of sketches.

    Attributes:
        least: Predicted drift that is least without inputs: ``"sum"`` over the networks, or
            ``"worst"`` of them.
        weight: Weight of a network's predicted drift, by network; 1 of those that are not named.
    """

    least: str = option(
        "sum", "predicted drift that is least in a merge by sketches: the sum, or the worst",
        group="pick", choices=LEAST, recorded="given",
    )  # fmt: skip
    weight: Mapping[str, float] | None = option(
        None, "weight of a network's predicted drift in the mean by sketches: a=2; default 1",
        group="pick", check=_weights, read=parse_weights, write=budget_texts, recorded="given",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        check_options(self)


@dataclass(frozen=True)
class MachineOptions:
    """Options of the machine and of what is stored.

    Attributes:
        memory: Most memory that the process may hold, such as ``"2GB"``: passes become smaller,
            then factors of the metric, until it fits; None is no limit.
        precision: Type in which passes with derivatives compute products, ``"float32"`` or
            ``"bfloat16"``; weights, gradients, metrics and all that is measured by logits are in
            float32 in both.
        points: Largest number of networks stored on the path, 8 at least; the usual 64 are fewer
            where they would be larger than 2 GB.
        dtype: Type of the written weights of the merged network, ``"float32"``, ``"float16"`` or
            ``"bfloat16"``; None takes that of the networks, where it is one. The path is written
            in float32.
        seed: Seed of all draws.
        adapter_rank: Rank of the one LoRA adapter that a merge of adapters is written as, what no
            adapter changes being held; None writes whole models.
    """

    memory: str | None = option(
        None, "limit of the memory in use, such as 2GB", group="machine", check=_size
    )
    precision: str = precision_option()
    points: int = option(
        POINTS, "largest number of networks stored on the path; the usual 64 are fewer beyond 2 GB",
        group="output", check=at_least(8),
    )  # fmt: skip
    dtype: str | None = dtype_option()
    seed: int = option(0, "seed of all random numbers", group="machine")
    adapter_rank: int | None = option(
        None, "rank of the LoRA adapter that merged adapters are written as; default whole models",
        group="output", check=at_least(1), recorded="given",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        check_options(self)


@dataclass(frozen=True, init=False)
class MergeOptions(FlatOptions):
    """Options of a merge; None lets geomerge choose.

    Options of the pieces can be given by their own names: ``MergeOptions(steps=60)``.

    Attributes:
        preset: Name of the preset, one of ``PRESETS``.
        head: Protocol of the head: ``"shared"``, ``"offset"`` or ``"separate"``.
        vocabulary: ``"union"``, with which networks whose embeddings (and output layers as wide as
            the vocabulary) lack rows take them from the network with the most; None refuses them.
        align: Method by which the units of every network after the first are permuted, so that
            they match the first's; their functions stay. ``"rotations"`` rotates residual streams
            and heads of vision transformers as well. ``"none"`` permutes none; None tries every
            method where a walk starts from the mean of convolutional networks, and takes the one by
            which the mean is nearest to all functions.
        bn: Policy for running statistics, ``"keep"`` or ``"re-estimate"``.
        relax: Whether the finished path is relaxed to least energy.
        measure: Choice of the metric.
        walk: Options of the walks.
        choose: Options of the pick.
        drift: Options of the mean in the metrics of sketches.
        machine: Options of the machine and of what is stored.

    Example:
        >>> import geomerge as gm
        >>> gm.MergeOptions(preset="joint", steps=60).walk.steps
        60
        >>> gm.MergeOptions(head="sharde")
        Traceback (most recent call last):
        geomerge.errors.OptionError: unknown head 'sharde'; did you mean 'shared'?
    """

    elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ["inputs", *(one.name for one in option_fields(DataOptions))],
        "gm.merge([a, b], options, {})",
    )
    preset: str | None = option(
        None, "preset; default by the data given", group="walk", choices=PRESETS.names
    )
    head: str = option(
        "shared", "protocol of the outputs that tasks share", group="what to merge", choices=HEADS
    )
    vocabulary: str | None = option(
        None, "treatment of embeddings of different lengths: with union the rows that a network "
        "lacks are those of the one with the most; default their refusal",
        group="what to merge", choices=VOCABULARIES, recorded="given",
    )  # fmt: skip
    align: str | None = option(
        None,
        "method that permutes the units of b, ... to match a's, or rotates its streams; default by "
        "the change that the mean of the weights makes",
        group="what to merge", choices=ALIGN,
    )  # fmt: skip
    bn: str | None = option(
        None, "policy for BatchNorm statistics; default by the inputs given", group="walk",
        choices=BN,
    )  # fmt: skip
    relax: bool = option(False, "relaxation of the finished path to least energy", group="walk")
    measure: MetricOptions = piece(MetricOptions)
    walk: WalkOptions = piece(WalkOptions)
    choose: PickOptions = piece(PickOptions)
    drift: DriftOptions = piece(DriftOptions)
    machine: MachineOptions = piece(MachineOptions)

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            OptionError: If a value cannot be used.
        """
        check_options(self)
        if self.walk.learn is not None and METRICS[self.measure.metric].isotropic:
            raise OptionError(
                f"`learn` {self.walk.learn} needs a metric to damp, and the {self.measure.metric} "
                "one is the same in all directions; leave one of the two out"
            )
        if self.walk.keep_zeros and self.relax:
            raise OptionError(
                "`relax` moves every weight and `keep_zeros` does not allow that; leave one out"
            )
