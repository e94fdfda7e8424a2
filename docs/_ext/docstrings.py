"""Docstrings made ready for the reference: shapes from the signatures, bars that are only bars."""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

__all__ = ["escaped", "setup", "shapes_of"]

_ARGUMENT = re.compile(r"^\s+(\w+): .*,  # (\(.*\)(?:, \w+)?|\S.* of \(.*\))\s*$", re.M)
_RETURNED = re.compile(r"^\s*(?:def .*)?\) -> .*:  # (\(.*\)(?:, \w+)?)\s*$", re.M)
_LITERAL = re.compile(r"(``.*?``|`[^`]*`|`.*$)")


def shapes_of(found: Any) -> tuple[dict[str, str], str | None]:
    """Return the shapes that comments on a function's signature give.

    Args:
        found: A function, or what is none and has no signature in its source.

    Returns:
        By argument, and of what is returned.
    """
    if not inspect.isfunction(found):
        return {}, None
    try:
        source = inspect.getsource(found)
    except (OSError, TypeError):
        return {}, None
    head = source.partition('"""')[0]
    returned = _RETURNED.search(head)
    return dict(_ARGUMENT.findall(head)), returned[1] if returned else None


def escaped(line: str) -> str:
    """Return a line in which bars outside of literals and formulas name no substitution."""
    parts = _LITERAL.split(line)
    return "".join(part if k % 2 else part.replace("|", r"\|") for k, part in enumerate(parts))


def _prepare(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Change a docstring in place, before its sections are read."""
    if what == "data" and "\n".join(lines).strip() == inspect.cleandoc(type(found).__doc__ or ""):
        lines.clear()  # a constant says what it is by its value
    formula = False
    for k, line in enumerate(lines):
        formula = line.startswith(".. math::") or (formula and line[:1] in ("", " "))
        if not formula:
            lines[k] = escaped(line)
    arguments, returned = shapes_of(found)
    said = [f"``{name}`` {shape}" for name, shape in arguments.items()]
    if returned is not None:
        said.append(f"returns {returned}")
    if said and lines:
        text = ", ".join(said).replace("*", r"\*")
        lines[1:1] = ["", f"Shapes: {text}.", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Change docstrings before napoleon, at 500, reads their sections."""
    app.connect("autodoc-process-docstring", _prepare, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
