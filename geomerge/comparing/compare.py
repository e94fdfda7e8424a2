"""Two networks -> a row for every method, measured on the same splits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from geomerge.checkpoint import Checkpoint
from geomerge.comparing.context import Context, NotApplicableError
from geomerge.comparing.methods import METHODS
from geomerge.comparing.options import CompareOptions
from geomerge.comparing.registry import Found, Method
from geomerge.comparing.walking import joint_samples
from geomerge.crossover import PickRule, accuracy, parse_pick, share_right
from geomerge.errors import CheckpointError, NumericalError, OptionError
from geomerge.merging.monitor import Progress
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.sides import Side, Sides
from geomerge.tasks import Split

__all__ = ["Comparison", "Row", "compare"]


@dataclass(frozen=True)
class Row:
    """A row of the table; accuracies in [0, 1] by network.

    Attributes:
        method: What it is.
        found: What it came to; None if it came to nothing.
        reason: Why not, a sentence; None if it did.
        seconds: What it took, picks counted and the measurements of the table not.
        select: Accuracies on the selection splits.
        test: Accuracies on the test splits.
        curve: Accuracies on the test splits along what led to it.
    """

    method: Method
    found: Found | None
    reason: str | None
    seconds: float
    select: dict[str, float]
    test: dict[str, float]
    curve: list[dict[str, float]]


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        sides: The networks and what they brought.
        rule: How points were picked.
        budget: Most samples that a trained row was given.
        experts: By network, its accuracy on its own test split.
        rows: The table.
    """

    sides: Sides
    rule: PickRule
    budget: int
    experts: dict[str, float]
    rows: list[Row]


def compare(
    networks: Sequence[Checkpoint],
    options: CompareOptions,
    *,
    base: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Try every method on two networks.

    Args:
        networks: Network a and network b. Neither is changed.
        options: Which methods, and what they may use.
        base: The common ancestor of both, if there is one.
        on_progress: Told how it goes.

    Returns:
        The table. Methods that cannot be used or that fail numerically have a reason in it.

    Raises:
        GeomergeError: If the networks do not belong together, or their tasks are not there.
    """
    if len(networks) != 2:
        raise OptionError(f"expected two networks to compare on, got {len(networks)}; name two")
    sides = prepare_sides(networks, options.merge)
    unknown = [side.name for side in sides if side.task is None]
    if unknown:
        raise OptionError(
            f"a comparison needs labelled data of both tasks and {' and '.join(unknown)} has none; "
            "name it with --task NETWORK=TASK"
        )
    select = {s.name: accuracy(s.network, s.w, _task(s, "select")) for s in sides}
    context = Context(
        sides=sides,
        options=options.merge,
        rule=parse_pick(options.merge.pick or "balanced", select),
        budget=options.budget or joint_samples(sides, options.merge),
        base=_ancestor(sides, base),
        on_progress=on_progress,
    )
    rows = []
    for k, name in enumerate(options.methods):
        if on_progress is not None:
            on_progress(Progress("methods", k, len(options.methods), {}))
        rows.append(_row(METHODS[name], context))
    experts = {s.name: accuracy(s.network, s.w, _task(s, "test")) for s in sides}
    return Comparison(sides, context.rule, context.budget, experts, rows)


def _row(method: Method, context: Context) -> Row:
    """Make a row, and measure it."""
    context = replace(context, measured=set())
    start = time.perf_counter()
    found, reason = None, None
    try:
        found = method.make(context)
        answer = found.answer
        if isinstance(answer, Tensor) and not bool(torch.isfinite(answer).all()):
            raise NumericalError("its weights are not finite numbers")
    except (NotApplicableError, OptionError) as error:
        found, reason = None, f"does not apply: {error}"
    except NumericalError as error:
        found, reason = None, f"failed: {error}"
    seconds = time.perf_counter() - start
    if found is None:
        return Row(method, None, reason, seconds, {}, {}, [])
    return Row(
        method=method,
        found=replace(  # a row is kept to the end, points of weight space are not
            found, curve=(), inputs=tuple(sorted({*found.inputs, *context.measured}))
        ),
        reason=None,
        seconds=seconds,
        select=_accuracies(context, found, "select"),
        test=_accuracies(context, found, "test"),
        curve=[_accuracies(context, Found(w), "test") for w in found.curve],
    )


def _accuracies(context: Context, found: Found, split: str) -> dict[str, float]:
    return {s.name: _accuracy(s, found, _task(s, split)) for s in context.sides}


def _accuracy(side: Side, found: Found, split: Split) -> float:
    if isinstance(found.answer, Tensor):
        return accuracy(side.network, found.answer, split)
    return share_right(partial(found.answer, side), split)


def _task(side: Side, split: str) -> Split:
    assert side.task is not None, "a comparison has both tasks"
    found: Split = getattr(side.task, split)
    return found


def _ancestor(sides: Sides, base: Checkpoint | None) -> Tensor | None:
    """Return the common ancestor's weights.

    Raises:
        CheckpointError: If it is not of the networks' architecture.
        OptionError: If the head is not shared.
    """
    if base is None:
        return None
    if sides.head != "shared":
        raise OptionError("--base needs a head that both networks share; use --head shared")
    for name, shape in sides.network.shapes.items():
        got = tuple(base.weights[name].shape) if name in base.weights else "none"
        if got != tuple(shape):
            raise CheckpointError(
                f"{base.source} is no ancestor of the networks: {name!r} has shape {got}, expected "
                f"{tuple(shape)}; give the network that both were fine-tuned from"
            )
    return sides.network.ravel(base.weights)
