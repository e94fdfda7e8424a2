"""Comparison of methods on two networks, all measured on the same splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.options import CompareOptions
from geomerge.comparison.registry import METHODS, MethodResult
from geomerge.comparison.row import MethodRow, make_row, split_of
from geomerge.errors import CheckpointError, OptionError
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import PickRule, parse_pick
from geomerge.io.checkpoint import Checkpoint
from geomerge.merging.joint import joint_samples
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.sides import Sides
from geomerge.monitor.progress import Progress
from geomerge.notebook import Curve, Dot, card, drawing, table

__all__ = [
    "Comparison",
    "MethodRow",
    "compare",
]


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        sides: Networks with their tasks.
        rule: Rule by which points were picked.
        max_samples: Largest number of samples that a trained row was given.
        experts: Accuracy of each network on its own test split.
        experts_select: Accuracy of each network on its own selection split.
        rows: Rows of the table.
    """

    sides: Sides
    rule: PickRule
    max_samples: int
    experts: dict[str, float]
    experts_select: dict[str, float]
    rows: list[MethodRow]

    def worst_drop(self, row: MethodRow) -> float:
        """Return how far a row falls below the networks on its worse task, in [0, 1], on test."""
        return max(self.experts[name] - value for name, value in row.test.items())

    @property
    def ranked(self) -> list[MethodRow]:
        """The rows with a result, the smallest worst drop first."""
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
                *(f"{100 * row.test[name]:.2f}" for name in self.experts),
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
        tests = [f"test of {name} (%)" for name in self.experts]
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
            drawing(curves, "accuracy on the task of a (test)", "on that of b", dots=dots),
        )


def compare(
    networks: Sequence[Checkpoint],
    options: CompareOptions,
    *,
    base: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    work: Path | None = None,
) -> Comparison:
    """Try every method on two networks.

    Args:
        networks: Network a and network b. Neither is changed.
        options: Methods and the data that they may use.
        base: Common ancestor of both, if there is one.
        on_progress: Function called with the progress.
        work: Folder in which finished rows are stored. The same call after an interruption makes
            the missing rows only, with the same result. None stores nothing.

    Returns:
        The table. Methods that cannot be used or that fail numerically have a reason in it.

    Raises:
        GeomergeError: If the networks do not belong together, or a task is missing.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.comparison import CompareOptions, compare
        >>> def untrained(seed, task):
        ...     torch.manual_seed(seed)
        ...     module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        ...     return gm.Checkpoint(module.state_dict(), {"task": task})
        >>> networks = [untrained(0, "digits"), untrained(1, "digits-permuted")]
        >>> options = CompareOptions(
        ...     gm.MergeOptions(manifold=("digits",)), only=("a", "b", "average"), budget=1000
        ... )
        >>> found = compare(networks, options)
        >>> [row.method.name for row in found.rows]
        ['a', 'b', 'average']
        >>> sorted(found.rows[-1].test)
        ['a', 'b']
    """
    if len(networks) != 2:
        raise OptionError(f"expected two networks to compare on, got {len(networks)}; name two")
    sides = prepare_sides(networks, options.merge)
    unknown = [side.name for side in sides if side.task is None]
    if unknown:
        raise OptionError(
            f"a comparison needs labelled data of both tasks and {' and '.join(unknown)} has none; "
            "give its `task`"
        )
    select = {s.name: accuracy(s.network, s.w, split_of(s, "select")) for s in sides}
    context = Context(
        sides=sides,
        options=options.merge,
        rule=parse_pick(options.merge.pick or "balanced", select),
        max_samples=options.budget or joint_samples(sides, options.merge),
        base=_ancestor(sides, base),
        on_progress=on_progress,
    )
    rows = []
    for k, name in enumerate(options.methods):
        if on_progress is not None:
            on_progress(Progress(name, k, len(options.methods), {}, whole=True))
        rows.append(make_row(METHODS[name], context, work))
    experts = {s.name: accuracy(s.network, s.w, split_of(s, "test")) for s in sides}
    return Comparison(sides, context.rule, context.max_samples, experts, select, rows)


def _data(result: MethodResult) -> str:
    parts = {"inputs": result.inputs, "labels": result.labels, "sketch": result.sketches}
    return ", ".join(f"{what} {'+'.join(names)}" for what, names in parts.items() if names) or "-"


def _ancestor(sides: Sides, base: Checkpoint | None) -> Tensor | None:
    """Return the common ancestor's weights.

    Raises:
        CheckpointError: If it is not of the networks' architecture.
        OptionError: If the head is not shared.
    """
    if base is None:
        return None
    if sides.head != "shared":
        raise OptionError("`base` needs a head that both networks share; give `head` as 'shared'")
    for name, shape in sides.network.shapes.items():
        got = tuple(base.weights[name].shape) if name in base.weights else "none"
        if got != tuple(shape):
            raise CheckpointError(
                f"{base.source} is no ancestor of the networks: {name!r} has shape {got}, expected "
                f"{tuple(shape)}; give the network that both were fine-tuned from"
            )
    return sides.network.ravel(base.weights)
