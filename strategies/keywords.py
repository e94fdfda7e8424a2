"""Options of merges among the keywords of a strategy or a plugin."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from geomerge.continual.options import ContinualOptions
from geomerge.options import check_known, option_fields, replace_options

__all__ = ["accept_options", "take_options"]

F = TypeVar("F", bound=Callable[..., None])


def accept_options(init: F) -> F:
    """Return a constructor whose signature lists the options of merges among its keywords.

    Avalanche reads signatures to find misspelled arguments, and editors complete them.

    Args:
        init: Constructor with ``**keywords``.
    """
    signature = inspect.signature(init)
    *own, rest = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, keyword, default=field.default, annotation=field.annotation)
        for field in option_fields(ContinualOptions)
        for name in (field.name, field.formerly)
        if name is not None
    ]
    more += [inspect.Parameter(old, keyword, default=None) for old in ("settings", "memory_limit")]
    init.__signature__ = signature.replace(parameters=[*own, *more, rest])  # type: ignore[attr-defined]
    return init


def take_options(
    options: ContinualOptions | None,
    memory: str | int | None,
    keywords: dict[str, Any],
) -> ContinualOptions:
    """Return options of merges, with those among keywords, which are taken out of there.

    Args:
        options: Options; None is the usual ones.
        memory: ``"sketch"`` or the number of examples stored of each task; None as in the options.
        keywords: Keywords, of which those that name options are removed.

    Raises:
        OptionError: If one is not known or out of range.
    """
    if "settings" in keywords:
        warnings.warn("`settings` is called `options` now", DeprecationWarning, stacklevel=3)
        options = keywords.pop("settings")
    fields = list(option_fields(ContinualOptions))
    names = {field.name for field in fields} | {field.formerly for field in fields}
    given = {name: keywords.pop(name) for name in list(keywords) if name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if keywords.get("memory_limit") is not None:
        warnings.warn("`memory_limit` is `memory_mb` now", DeprecationWarning, stacklevel=3)
        given["memory_mb"] = keywords.pop("memory_limit") / 1e6
    if isinstance(memory, str):
        check_known("memory", memory, ("sketch",))
        given["examples"] = 0
    elif memory is not None:
        given["examples"] = memory
    return replace_options(ContinualOptions() if options is None else options, **given)
