"""Shell completion of the names of tasks, presets, metrics and methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["complete_with", "completion"]

Names = Callable[[], Sequence[str]]


def completion(
    name: str, choices: Sequence[str] | Names | None = None
) -> Callable[[str], list[str]] | None:
    """Return the completer of an option's values; None if any text is valid.

    Args:
        name: Name of the option.
        choices: Valid names, or a function that returns them.
    """
    if choices is not None:
        return complete_with(choices if callable(choices) else lambda: choices)
    return complete_with(_OPEN[name]) if name in _OPEN else None


def complete_with(names: Names) -> Callable[[str], list[str]]:
    """Return the completer of the last name in a word such as ``slerp,reg`` or ``b=dig``.

    Args:
        names: Function that returns all names.
    """

    def complete(incomplete: str) -> list[str]:
        cut = max(incomplete.rfind(","), incomplete.rfind("=")) + 1
        before, last = incomplete[:cut], incomplete[cut:]
        return [before + name for name in names() if name.startswith(last)]

    return complete


def _tasks() -> Sequence[str]:
    from geomerge.data.sources import NAMED

    return tuple(NAMED)


def _architectures() -> Sequence[str]:
    from geomerge.networks.architectures import NAMED

    return NAMED


def _picks() -> Sequence[str]:
    from geomerge.evaluation.pick import PICKS

    return PICKS.names()


# Options with completion but without fixed choices: other texts, such as files, are valid as well.
_OPEN: dict[str, Names] = {
    "manifold": _tasks, "task": _tasks, "arch": _architectures, "pick": _picks,
}  # fmt: skip
