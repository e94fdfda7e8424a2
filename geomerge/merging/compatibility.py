"""Compatibility of experts with each other and with the options of their merge."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geomerge.data import recorded_normalisation
from geomerge.errors import OptionError, Problems
from geomerge.expert import Expert
from geomerge.io.checkpoint import Checkpoint
from geomerge.merging.buffers import different_constants
from geomerge.merging.options import MergeOptions
from geomerge.merging.same_make import adapters_base, compare_networks
from geomerge.metrics import METRICS

__all__ = ["check_compatible"]


def check_compatible(
    experts: Sequence[Expert],
    options: MergeOptions,
    problems: Problems,
    base: Expert | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Collect everything that prevents a merge of experts with these options.

    Args:
        experts: Experts with their names.
        options: Options of the merge.
        problems: Collector of a sentence for each problem.
        base: Common ancestor of the experts; None if there is none.

    Returns:
        Buffers of each expert that differ and are no statistics, by its name.
    """
    parts = [Checkpoint(e.network.module.state_dict(), e.meta, {}, e.source) for e in experts]
    compare_networks(parts, options.head, problems)
    for expert in experts:
        with problems.noted():
            _compare_normalisations(expert)
    constants: dict[str, dict[str, Tensor]] = {}
    if not problems:  # of one architecture
        with problems.noted():
            constants = different_constants(experts, options.head == "separate")
            if constants and options.align not in (None, "none"):
                raise OptionError(
                    f"`align` {options.align} permutes units, and buffers of the networks differ "
                    "that may belong to them; leave `align` out"
                )
    with problems.noted():
        if options.machine.adapter_rank is not None:
            adapters_base(experts, base)
    with problems.noted():
        _refuse_unknown_names(experts, options)
    with problems.noted():
        _refuse_equal_tasks(experts, options)
    with problems.noted():
        _refuse_sums(experts, options)
    with problems.noted():
        if base is not None and options.align not in (None, "none"):
            raise OptionError(
                f"`align` {options.align} permutes units, and those of fine-tunes of one base are "
                "in one order already; leave out `align` or the base"
            )
    return constants


def _compare_normalisations(expert: Expert) -> None:
    """Refuse a sketch that was measured on inputs of another normalisation."""
    task = expert.sketch.meta.get("task") if expert.sketch is not None else None
    if expert.sketch is None or not isinstance(task, str):
        return
    own = recorded_normalisation(expert.meta, task)
    seen = recorded_normalisation(expert.sketch.meta, task)
    if own is not None and seen is not None and own != seen:
        raise OptionError(
            f"the sketch of {expert.name} was measured on {task} with {seen}, and the "
            f"network was trained with {own}; make the sketch again"
        )


def _refuse_unknown_names(experts: Sequence[Expert], options: MergeOptions) -> None:
    names = [expert.name for expert in experts]
    named = {"budget": options.choose.budget, "weight": options.drift.weight}
    for option, bounded in ((option, key) for option, keys in named.items() for key in keys or ()):
        name = bounded.partition("/")[0]
        if name not in names:
            raise OptionError(
                f"`{option}` names network {name!r}, and the networks are {', '.join(names)}; "
                "name one of them"
            )


def _refuse_equal_tasks(experts: Sequence[Expert], options: MergeOptions) -> None:
    known = [expert.task.name for expert in experts if expert.task]
    if options.head != "shared" and len(set(known)) < len(known):
        raise OptionError(
            f"two networks are for {max(known, key=known.count)}, and `head` {options.head} gives "
            "each task outputs of its own; use `head` shared"
        )


def _refuse_sums(experts: Sequence[Expert], options: MergeOptions) -> None:
    """Refuse metrics that cannot be added where several heads would have to be measured."""
    several = len(experts) > 2 or all(expert.inputs for expert in experts)
    kind = METRICS[options.measure.metric]
    if options.head == "separate" and several and not kind.additive:
        raise OptionError(
            f"`metric` {kind.name} measures several tasks at once only in one block of outputs; "
            "use `metric` kronecker with `head` separate"
        )
