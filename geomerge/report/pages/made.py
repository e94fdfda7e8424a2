"""Section of every page on the command and the recipe of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from geomerge.report.pages.model import Section, Table

__all__ = ["made_section"]


def made_section(
    report: Mapping[str, Any], parts: Sequence[str | Table] = (), *, exact: bool = True
) -> Section:
    """Return the command and the recipe of a run.

    Args:
        report: Content of ``report.json``.
        parts: More paragraphs and tables, such as one on the data.
        exact: Whether the same command gives the same bits; else the same accuracies.
    """
    same = (
        "The same files and data with this command give the same bits on the same machine"
        if exact
        else "The same command gives the same accuracies on the same machine; seconds differ"
    )
    return Section(
        "Data, command and recipe",
        [
            *parts,
            f"{same}. The recipe below identifies the run.",
        ],
        code=f"{report['command']}\n\n{json.dumps(report['recipe'], indent=1)}",
    )
