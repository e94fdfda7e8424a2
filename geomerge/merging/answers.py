"""Test examples on which the crossover answers otherwise than the network trained for the task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.data import Split
from geomerge.merging.merge import Merge
from geomerge.merging.sides import Side

__all__ = ["Answers", "ChangedAnswer", "changed_answers"]

_SHOWN = 12  # of those lost and of those gained together, for each task


@dataclass(frozen=True)
class ChangedAnswer:
    """One example; class numbers are the task's own.

    Attributes:
        index: Its place in the test split.
        label: Its class.
        before: What the task's own network says; None is an output of another task.
        after: What the crossover says, likewise.
        image: Its pixels, shape (H, W) or (H, W, 3), bytes; None if the inputs are no images.
    """

    index: int
    label: int
    before: int | None
    after: int | None
    image: Tensor | None


@dataclass(frozen=True)
class Answers:
    """How the answers on one task's test split changed.

    Attributes:
        of: Examples.
        kept: Right before and after.
        lost: Right before, wrong after.
        gained: Wrong before, right after.
        wrong: Wrong both times.
        shown: Some of those lost and gained, in the order of the split.
    """

    of: int
    kept: int
    lost: int
    gained: int
    wrong: int
    shown: list[ChangedAnswer]


def changed_answers(merged: Merge) -> dict[str, Answers]:
    """Return how the crossover's answers differ from the networks' own, by network.

    Nothing is chosen by what is found here.

    Args:
        merged: The merge; networks without a task are left out.
    """
    return {s.name: _answers(s, merged.w, s.task.test) for s in merged.sides if s.task is not None}


def _answers(side: Side, w: Tensor, split: Split) -> Answers:
    labels = split.labels
    before, after = (_said(side, point, split) for point in (side.w, w))
    was, now = before == labels, after == labels
    lost, gained = (torch.nonzero(mask).flatten().tolist() for mask in (was & ~now, ~was & now))
    half = _SHOWN // 2
    few = sorted([*lost[: max(half, _SHOWN - len(gained))], *gained[:half]][:_SHOWN])
    return Answers(
        of=len(labels),
        kept=int((was & now).sum()),
        lost=len(lost),
        gained=len(gained),
        wrong=int((~was & ~now).sum()),
        shown=[
            ChangedAnswer(
                index=k,
                label=int(labels[k]) - side.offset,
                before=_own(side, int(before[k])),
                after=_own(side, int(after[k])),
                image=_image(split.inputs.raw[k]),
            )
            for k in few
        ],
    )


def _own(side: Side, output: int) -> int | None:
    """Return the number that an output has as a class of a side's own task."""
    assert side.task is not None, "only tasks have answers"
    return output - side.offset if side.offset <= output < side.task.classes else None


def _said(side: Side, w: Tensor, split: Split) -> Tensor:  # (N,)
    batches = split.inputs.batches(2000)
    return torch.cat([side.network.logits(w, x).argmax(dim=1) for x in batches])


def _image(raw: Tensor) -> Tensor | None:
    """Return pixels of an input that is one: bytes or shares of white, grey or in three colours."""
    shape = raw.shape
    if raw.dim() == 3 and shape[0] in (1, 3):
        raw = raw[0] if shape[0] == 1 else raw.permute(1, 2, 0)
    elif raw.dim() != 2:
        return None
    if raw.dtype != torch.uint8:
        if not raw.is_floating_point() or not 0 <= float(raw.min()) <= float(raw.max()) <= 1:
            return None
        raw = (255 * raw).round().byte()
    return raw.cpu()
