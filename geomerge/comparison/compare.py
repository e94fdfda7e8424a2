"""Comparison of merging methods on two networks and the same splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geomerge.comparison.context import Context
from geomerge.comparison.options import CompareOptions
from geomerge.comparison.registry import METHODS, MethodResult
from geomerge.comparison.row import MethodRow, make_row, split_of
from geomerge.errors import OptionError, Problems
from geomerge.evaluation.measures import drop, score, worded
from geomerge.evaluation.pick import PickRule, parse_pick
from geomerge.evaluation.plausibility import doubts, first_looks
from geomerge.expert_like import ExpertLike, as_expert
from geomerge.loading import given_experts
from geomerge.merging.joint_training import joint_samples
from geomerge.merging.prepare import prepare
from geomerge.monitor.progress import Progress
from geomerge.notebook import Curve, Dot, card, drawing, table
from geomerge.options import replace_options
from geomerge.weight_space import WeightSpace

__all__ = [
    "Comparison",
    "MethodRow",
    "compare",
]


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        space: Networks with their tasks.
        rule: Pick rule.
        max_samples: Largest number of samples for each method with training.
        experts: Accuracy of each network on its own test split.
        experts_select: Accuracy of each network on its own selection split.
        rows: Rows of the table.
        notes: Assumptions and omissions, in sentences.
    """

    space: WeightSpace
    rule: PickRule
    max_samples: int
    experts: dict[str, float]
    experts_select: dict[str, float]
    rows: list[MethodRow]
    notes: list[str] = field(default_factory=list)

    def worst_drop(self, row: MethodRow) -> float:
        """Return a row's largest loss of accuracy below the task's network, on test.

        For language models it is the largest relative increase of the perplexity.
        """
        return max(
            drop(self.experts[name], value, self.measure(name)) for name, value in row.test.items()
        )

    def measure(self, name: str) -> str:
        """Return the measure of a network's task, ``"accuracy"`` or ``"loss"``."""
        task = self.space[name].task
        assert task is not None, "a comparison has both tasks"
        return task.measure

    @property
    def ranked(self) -> list[MethodRow]:
        """Rows with a result, in ascending order of their worst drop."""
        return sorted((row for row in self.rows if row.result is not None), key=self.worst_drop)

    def __repr__(self) -> str:
        best = self.ranked[0].method.name if self.ranked else "none"
        return (
            f"<Comparison of {len(self.rows)} methods on {' and '.join(self.experts)}, "
            f"at most {self.max_samples} samples each: smallest worst drop {best}>"
        )

    def _repr_html_(self) -> str:
        rows = [
            [
                row.method.name,
                *(worded(row.test[name], self.measure(name), 2) for name in self.experts),
                f"{100 * self.worst_drop(row):.2f}",
                _data(row.result) if row.result else "",
                f"{row.result.samples:,}" if row.result else "",
                f"{row.seconds:.1f}",
            ]
            for row in self.ranked
        ]
        rows += [
            [row.method.name, *[""] * len(self.experts), "", row.reason, "", ""]
            for row in self.rows
            if row.reason
        ]
        tests = [f"test of {name}" for name in self.experts]
        headings = ("method", *tests, "worst drop", "data", "samples", "seconds")
        curves = [
            Curve(f"the way of {row.method.name}", [(p["a"], p["b"]) for p in row.curve])
            for row in self.ranked
            if row.curve
        ]
        dots = [Dot(row.method.name, row.test["a"], row.test["b"]) for row in self.ranked]
        return card(
            f"{len(self.rows)} methods, at most {self.max_samples:,} samples for each trained one",
            table(headings, rows),
            drawing(curves, "score on the task of a (test)", "on that of b", dots=dots),
        )


def compare(
    experts: Sequence[ExpertLike],
    options: CompareOptions | None = None,
    *,
    base: ExpertLike | None = None,
    work: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> Comparison:
    """Compare merging methods on two networks.

    Args:
        experts: Network a and network b, as experts, modules or files. Neither is changed.
        options: Methods and the samples that they may use.
        base: Common ancestor of both, if there is one.
        work: Folder for finished rows. The same call after an interruption computes only the
            missing rows, with the same result. None stores nothing.
        progress: Function called with the progress.
        changes: Options by name that replace those of ``options``: ``only``, ``skip``,
            ``max_samples``, and those of walks, such as ``steps`` or ``head``.

    Returns:
        The table. Rows of methods that are not applicable or fail numerically have a reason.

    Raises:
        GeomergeError: If the networks cannot be merged, or a task is missing.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> def untrained(seed, task):
        ...     torch.manual_seed(seed)
        ...     return gm.Expert.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task)
        >>> experts = [untrained(0, "digits"), untrained(1, "digits-permuted")]
        >>> found = gm.compare(experts, only=("a", "b", "average"), max_samples=1000)
        >>> [row.method.name for row in found.rows]
        ['a', 'b', 'average']
        >>> sorted(found.rows[-1].test)
        ['a', 'b']
    """
    given = given_experts(experts, changes)
    options = replace_options(options or CompareOptions(), **changes)
    if len(given) != 2:
        raise OptionError(f"expected two networks to compare on, got {len(given)}; name two")
    ancestor = None if base is None else as_expert(base, among=given)
    prepared = prepare(given, options.merge, Problems(strict=True), ancestor)
    assert prepared is not None, "strict problems are raised"
    space = prepared.space
    if space.network.constants:
        raise OptionError(
            f"the networks differ in {', '.join(map(repr, space.network.constants))}, buffers that "
            "a comparison cannot keep for each task; merge the networks, which can"
        )
    named = [replace(e, name=own.name) for e, own in zip(given, space, strict=True)]
    prepared.notes[:0] = doubts(named, first_looks(named))
    unknown = [expert.name for expert in space if expert.task is None]
    if unknown:
        raise OptionError(
            "a comparison needs labelled data of both tasks, and there is none for "
            f"{' and '.join(unknown)}; name the task with `task`"
        )
    select = {e.name: score(e.network, e.weights, split_of(e, "select")) for e in space}
    context = Context(
        prepared=prepared,
        rule=parse_pick(options.merge.choose.pick or "balanced", select),
        max_samples=options.max_samples or joint_samples(space, options.merge.walk.steps),
        base=prepared.base,
        progress=progress,
    )
    rows = []
    for k, name in enumerate(options.methods):
        if progress is not None:
            progress(Progress(name, k, len(options.methods), {}, whole=True))
        rows.append(make_row(METHODS[name], context, None if work is None else Path(work)))
    test = {e.name: score(e.network, e.weights, split_of(e, "test")) for e in space}
    return Comparison(space, context.rule, context.max_samples, test, select, rows, prepared.notes)


def _data(result: MethodResult) -> str:
    parts = {"inputs": result.inputs, "labels": result.labels, "sketch": result.sketches}
    return ", ".join(f"{what} {'+'.join(names)}" for what, names in parts.items() if names) or "-"
