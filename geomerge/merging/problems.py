"""All that is wrong, collected rather than raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from geomerge.errors import Problems
from geomerge.io.checkpoint import Checkpoint

__all__ = ["Problems", "compare_networks"]


_SHOWN = 3


def compare_networks(
    checkpoints: Sequence[Checkpoint], head: str, arch: str | None, problems: Problems
) -> None:
    """Hold every network against the first.

    Args:
        checkpoints: The networks that could be read.
        head: Protocol of the head; only a shared one needs equal numbers of outputs.
        arch: Architecture that the user named for all, if any.
        problems: Takes a sentence for each way in which a network differs.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        one, two = (c.meta.get("architecture") for c in (first, other))
        if arch is None and one and two and one != two:
            problems.note(
                f"{first.source} is a {one} and {other.source} a {two}, expected networks of one "
                "architecture; say which to take all for with `arch`"
            )
        _compare(first, other, head, problems)


def _compare(first: Checkpoint, other: Checkpoint, head: str, problems: Problems) -> None:
    one, two = first.weights, other.weights
    apart = [name for name in {**one, **two} if _shape(one, name) != _shape(two, name)]
    outputs = [name for name in apart if _is_head(name, one, two)]
    apart = [name for name in apart if name not in outputs]
    if outputs and head == "shared":
        name = outputs[0]
        problems.note(
            f"{first.source} has {len(one[name])} outputs and {other.source} has {len(two[name])}, "
            "expected one head shared by all tasks; say `head` offset or `head` separate, or "
            "train all with as many outputs"
        )
    if apart:
        listed = "; ".join(
            f"{name!r} {_shape(one, name)} and {_shape(two, name)}" for name in apart[:_SHOWN]
        )
        more = f"; and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
        problems.note(
            f"{first.source} and {other.source} are not of one architecture ({listed}{more}), "
            "expected equal names and shapes of all parameters and buffers; give networks of the "
            "same make"
        )
    for name in one:
        if name in two and one[name].is_floating_point() != two[name].is_floating_point():
            problems.note(
                f"{name!r} is of type {one[name].dtype} in {first.source} and of {two[name].dtype} "
                f"in {other.source}, expected floats in both or whole numbers in both; save one "
                "of them again"
            )


def _is_head(name: str, one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is of the last layer and differs in its number of outputs only."""
    last = list(one)[-1].rpartition(".")[0]
    if name.rpartition(".")[0] != last or name not in one or name not in two:
        return False
    return one[name].dim() > 0 and one[name].shape[1:] == two[name].shape[1:]


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "none"
