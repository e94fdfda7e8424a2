"""Rows of the comparison table: computation, measurement, and storage for resuming."""

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
from geomerge.evaluation.measures import score, score_of
from geomerge.expert import Expert
from geomerge.walks.state import StateFile

__all__ = [
    "MethodRow",
    "make_row",
    "split_of",
]

_DRAWN = 2000  # test examples at each point of a curve, which is drawn
_LISTS = ("inputs", "labels", "sketches")


@dataclass(frozen=True)
class MethodRow:
    """Row of the table; scores are by name of the network.

    Attributes:
        method: Method of the row.
        result: Result of the method, or None.
        reason: Reason for having no result, as a sentence; None if there is a result.
        seconds: Time of the method in seconds, including picks but not the table's measurements.
        select: Scores on the selection splits.
        test: Scores on the test splits.
        curve: Scores on the test splits along the method's curve, on 2000 examples at most.
    """

    method: Method
    result: MethodResult | None
    reason: str | None
    seconds: float
    select: dict[str, float]
    test: dict[str, float]
    curve: list[dict[str, float]]


def make_row(method: Method, context: Context, work: Path | None) -> MethodRow:
    """Compute and measure a row, or return the stored one.

    Args:
        method: Method of the row.
        context: Context of the comparison; notes of the method are added to those of the networks.
        work: Folder for rows; None stores nothing.

    Raises:
        RunError: If a stored row cannot be read, or the folder cannot be written.
    """
    stored = StateFile(
        None if work is None else work / method.name / "state", context.network.device
    )
    notes = context.prepared.notes
    if stored.state.values:
        notes += stored.state.values["notes"]
        return _restored(method, context, stored)
    known = len(notes)
    row = _measured(method, context)
    stored.state.values = {
        "notes": notes[known:],
        "reason": row.reason,
        "seconds": row.seconds,
        "select": row.select,
        "test": row.test,
        "curve": row.curve,
        "result": None if row.result is None else _numbers(row.result),
    }
    if row.result is not None and isinstance(row.result.answer, Tensor):
        stored.state.tensors["answer"] = row.result.answer
    stored.write()
    return row


def _numbers(result: MethodResult) -> dict[str, Any]:
    lists = {name: list(getattr(result, name)) for name in _LISTS}
    return {**lists, "samples": result.samples, "chosen": dict(result.chosen)}


def _restored(method: Method, context: Context, stored: StateFile) -> MethodRow:
    values = dict(stored.state.values)
    del values["notes"]
    numbers = values.pop("result")
    if numbers is None:
        return MethodRow(method, None, **values)
    answer: Tensor | Predictor
    if "answer" in stored.state.tensors:
        answer = stored.state.tensors["answer"]
    else:  # predictors are not stored, since they are cheap to make
        answer = method.make(replace(context, measured=set())).answer
    numbers |= {name: tuple(numbers[name]) for name in _LISTS}
    return MethodRow(method, MethodResult(answer, **numbers), **values)


def _measured(method: Method, context: Context) -> MethodRow:
    context = replace(context, measured=set())
    start = time.perf_counter()
    result, reason = None, None
    try:
        result = method.make(context)
        answer = result.answer
        if isinstance(answer, Tensor) and not bool(torch.isfinite(answer).all()):
            raise NumericalError("its weights are not finite, expected finite numbers")
        held = context.network.held
        if isinstance(answer, Tensor) and held is not None:  # equal in both networks
            result = replace(result, answer=torch.where(held, context.a.weights, answer))
    except (NotApplicableError, OptionError) as error:
        result, reason = None, f"does not apply: {error}"
    except NumericalError as error:
        result, reason = None, f"failed: {error}"
    seconds = time.perf_counter() - start
    if result is None:
        return MethodRow(method, None, reason, seconds, {}, {}, [])
    return MethodRow(
        method=method,
        result=replace(  # drops points of weight space, which need not be held until the end
            result, curve=(), inputs=tuple(sorted({*result.inputs, *context.measured}))
        ),
        reason=None,
        seconds=seconds,
        select=_scores(context, result, "select"),
        test=_scores(context, result, "test"),
        curve=[_scores(context, MethodResult(w), "test", _DRAWN) for w in result.curve],
    )


def _scores(
    context: Context, result: MethodResult, split: str, most: int | None = None
) -> dict[str, float]:
    found = {e.name: split_of(e, split) for e in context.space}
    if most is not None:
        found = {name: one.sample(most) for name, one in found.items()}
    return {e.name: _score(e, result, found[e.name]) for e in context.space}


def _score(expert: Expert, result: MethodResult, split: Split) -> float:
    if isinstance(result.answer, Tensor):
        return score(expert.network, result.answer, split)
    return score_of(partial(result.answer, expert), split)


def split_of(expert: Expert, split: str) -> Split:
    """Return a split of a network's task, ``"train"``, ``"select"`` or ``"test"``."""
    assert expert.task is not None, "a comparison has both tasks"
    found: Split = getattr(expert.task, split)
    return found
