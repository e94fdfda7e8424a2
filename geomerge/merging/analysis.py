"""Analysis of a merged network: changed answers on test examples, distances by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.data import Inputs, Split
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.merging.plane import LossPlane, plane_of
from geomerge.merging.result import MergeResult
from geomerge.networks.batches import Batch, leaves, take

__all__ = [
    "Answers",
    "ChangedAnswer",
    "LayerDistance",
    "Seen",
    "SurrogateExamples",
    "changed_answers",
    "layer_distances",
    "look_at",
]

_SHOWN = 12  # largest number of lost and gained examples together, for each task


@dataclass(frozen=True)
class Seen:
    """Measurements of a merge for its report, which change no result.

    Attributes:
        layers: Distance of each tensor of the crossover from the networks.
        answers: Change of the answers on each network's test split.
        plane: Losses around the path; None where the path spans no plane.
        surrogates: Some of the surrogate inputs of each network that had some.
    """

    layers: list[LayerDistance]
    answers: Mapping[str, Answers]
    plane: LossPlane | None
    surrogates: Mapping[str, SurrogateExamples]


@dataclass(frozen=True)
class LayerDistance:
    """Distances of one tensor of the state dict.

    Attributes:
        name: Name of the tensor.
        weights: Number of its weights.
        distance: Distance |w - w_i| of that tensor alone, by network.
        apart: Distance |w_last - w_first| of that tensor alone.
    """

    name: str
    weights: int
    distance: dict[str, float]
    apart: float


@dataclass(frozen=True)
class ChangedAnswer:
    """Test example with another answer than before; class numbers are the task's own.

    Attributes:
        index: Place of the example in the test split.
        label: Class of the example.
        before: Answer of the task's own network; None is an output of another task.
        after: Answer of the crossover, likewise.
        image: Pixels, shape (H, W) or (H, W, 3), bytes; None if the inputs are no images.
    """

    index: int
    label: int
    before: int | None
    after: int | None
    image: Tensor | None


@dataclass(frozen=True)
class Answers:
    """Change of the answers on one task's test split.

    Attributes:
        of: Number of examples.
        kept: Number of examples that are right before and after.
        lost: Number of examples that are right before and wrong after.
        gained: Number of examples that are wrong before and right after.
        wrong: Number of examples that are wrong before and after.
        shown: Some of the lost and gained examples, in the order of the split.
    """

    of: int
    kept: int
    lost: int
    gained: int
    wrong: int
    shown: list[ChangedAnswer]


@dataclass(frozen=True)
class SurrogateExamples:
    """Some of the surrogate inputs of a network.

    Attributes:
        kind: Kind of the inputs, such as ``"surrogate images"``.
        inputs: Number of all of them.
        first: First numbers of the first one, as text.
        images: Pixels of some, shape (H, W) or (H, W, 3), bytes: black is -2, white 2 deviations.
    """

    kind: str
    inputs: int
    first: str
    images: list[Tensor]


def look_at(merged: MergeResult) -> Seen:
    """Measure the analysis of a merge: answers, plane, distances by layer, surrogate inputs."""
    own = [expert.inputs.raw for expert in merged.space if expert.inputs is not None]
    surrogates = {
        name: _surrogates(inputs)
        for name, inputs in merged.preset.prepared.surrogates.items()
        if not any(inputs.raw is raw for raw in own)  # those of a task are data of the user
    }
    return Seen(layer_distances(merged), changed_answers(merged), plane_of(merged), surrogates)


def _surrogates(inputs: Inputs) -> SurrogateExamples:
    few = inputs.raw if isinstance(inputs.raw, Tensor) else leaves(inputs.raw)[0]
    pixels = (few[:_SHOWN] / 4 + 0.5).clamp(0, 1) if few.is_floating_point() else few[:0]
    images = [_image(x) for x in pixels] if few.dim() == 4 else []
    return SurrogateExamples(
        kind=inputs.name,
        inputs=len(inputs),
        first=" ".join(f"{v:.3g}" for v in few[0].flatten()[:_SHOWN].tolist()),
        images=[image for image in images if image is not None],
    )


def layer_distances(merged: MergeResult) -> list[LayerDistance]:
    """Return the distances of all tensors of the crossover, in the order of the state dict."""
    space, w = merged.space, merged.w
    first, last = (expert.weights for expert in space.ends)
    return [
        LayerDistance(
            name=name,
            weights=place.stop - place.start,
            distance={e.name: paged.distance(w[place], e.weights[place]) for e in space},
            apart=paged.distance(last[place], first[place]),
        )
        for name, place in space.network.slices.items()
    ]


def changed_answers(merged: MergeResult) -> dict[str, Answers]:
    """Return the change of the answers from each network's own to the crossover's, by network.

    Args:
        merged: The merge; networks without a task, or whose task is to predict tokens, are left
            out.
    """
    return {
        e.name: _answers(e, merged.w, e.task.test)
        for e in merged.space
        if e.task is not None and e.task.measure == "accuracy"
    }


def _answers(expert: Expert, w: Tensor, split: Split) -> Answers:
    assert expert.task is not None, "only tasks have answers"
    labels, first = split.labels, expert.task.first_class
    before, after = (_said(expert, point, split) for point in (expert.weights, w))
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
                label=int(labels[k]) - first,
                before=_own(expert, int(before[k])),
                after=_own(expert, int(after[k])),
                image=_image(take(split.inputs.raw, k)),
            )
            for k in few
        ],
    )


def _own(expert: Expert, output: int) -> int | None:
    """Return the class of an expert's own task that an output belongs to."""
    assert expert.task is not None, "only tasks have answers"
    first = expert.task.first_class
    return output - first if first <= output < expert.task.classes else None


def _said(expert: Expert, w: Tensor, split: Split) -> Tensor:  # (N,)
    """Return the largest outputs for the examples of a split."""
    said = torch.empty_like(split.labels)
    for index, x in split.inputs.parts(2000):
        said[index] = expert.network.logits(w, x).argmax(dim=1)
    return said


def _image(raw: Batch) -> Tensor | None:
    """Return the pixels of an image: bytes or shares of white, grey or in three colours."""
    if not isinstance(raw, Tensor):
        return None
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
