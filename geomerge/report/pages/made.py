"""How a run was made, and how to make it again: the last part of every page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from geomerge.report.pages.model import Section, Table

__all__ = ["made_section"]


def made_section(
    report: dict[str, Any], parts: Sequence[str | Table] = (), *, exact: bool = True
) -> Section:
    """Return the command and the recipe of a run.

    Args:
        report: The content of ``report.json``.
        parts: What else there is to say of the data.
        exact: Whether all of it, not only the networks, comes out the same again.
    """
    same = (
        "The same files and data with this command give the same bits on the same machine"
        if exact
        else "The same command gives the same accuracies on the same machine; seconds differ"
    )
    return Section(
        "How it was made, and how to make it again",
        [
            *parts,
            f"{same}. The recipe below is what the run is known by.",
        ],
        code=f"{report['command']}\n\n{json.dumps(report['recipe'], indent=1)}",
    )
