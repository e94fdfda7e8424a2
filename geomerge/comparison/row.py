"""A row of the table: made, measured, and kept where a comparison may be interrupted."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import Method, MethodResult, Predictor
from geomerge.data import Split
from geomerge.errors import NumericalError, OptionError
from geomerge.evaluation.accuracy import accuracy, share_right
from geomerge.merging.sides import Side
from geomerge.walks.state import StateFile

__all__ = [
    "MethodRow",
    "make_row",
    "split_of",
]

_LISTS = ("inputs", "labels", "sketches")


@dataclass(frozen=True)
class MethodRow:
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
    found: MethodResult | None
    reason: str | None
    seconds: float
    select: dict[str, float]
    test: dict[str, float]
    curve: list[dict[str, float]]


def make_row(method: Method, context: Context, work: Path | None) -> MethodRow:
    """Make a row and measure it, or return the one that was kept when that was done.

    Args:
        method: The method.
        context: The case; what the method notes is added to the notes of its sides.
        work: Where rows are kept; None keeps nothing.

    Raises:
        RunError: If what was kept cannot be read, or nothing can be written there.
    """
    kept = StateFile(None if work is None else work / method.name / "state", context.options.device)
    notes = context.sides.notes
    if kept.state.values:
        notes += kept.state.values["notes"]
        return _restored(method, context, kept)
    known = len(notes)
    row = _measured(method, context)
    kept.state.values = {
        "notes": notes[known:],
        "reason": row.reason,
        "seconds": row.seconds,
        "select": row.select,
        "test": row.test,
        "curve": row.curve,
        "found": None if row.found is None else _numbers(row.found),
    }
    if row.found is not None and isinstance(row.found.answer, Tensor):
        kept.state.tensors["answer"] = row.found.answer
    kept.write()
    return row


def _numbers(found: MethodResult) -> dict[str, Any]:
    lists = {name: list(getattr(found, name)) for name in _LISTS}
    return {**lists, "samples": found.samples, "chosen": dict(found.chosen)}


def _restored(method: Method, context: Context, kept: StateFile) -> MethodRow:
    values = dict(kept.state.values)
    del values["notes"]
    numbers = values.pop("found")
    if numbers is None:
        return MethodRow(method, None, **values)
    answer: Tensor | Predictor
    if "answer" in kept.state.tensors:
        answer = kept.state.tensors["answer"]
    else:  # what is not one network is not stored; it is made without any work
        answer = method.make(replace(context, measured=set())).answer
    numbers |= {name: tuple(numbers[name]) for name in _LISTS}
    return MethodRow(method, MethodResult(answer, **numbers), **values)


def _measured(method: Method, context: Context) -> MethodRow:
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
        return MethodRow(method, None, reason, seconds, {}, {}, [])
    return MethodRow(
        method=method,
        found=replace(  # a row is kept to the end, points of weight space are not
            found, curve=(), inputs=tuple(sorted({*found.inputs, *context.measured}))
        ),
        reason=None,
        seconds=seconds,
        select=_accuracies(context, found, "select"),
        test=_accuracies(context, found, "test"),
        curve=[_accuracies(context, MethodResult(w), "test") for w in found.curve],
    )


def _accuracies(context: Context, found: MethodResult, split: str) -> dict[str, float]:
    return {s.name: _accuracy(s, found, split_of(s, split)) for s in context.sides}


def _accuracy(side: Side, found: MethodResult, split: Split) -> float:
    if isinstance(found.answer, Tensor):
        return accuracy(side.network, found.answer, split)
    return share_right(partial(found.answer, side), split)


def split_of(side: Side, split: str) -> Split:
    """Return a split of a network's task, ``"train"``, ``"select"`` or ``"test"``."""
    assert side.task is not None, "a comparison has both tasks"
    found: Split = getattr(side.task, split)
    return found
