"""Page of a reconfiguration: accuracies, removed units and walks of all configurations."""

from __future__ import annotations

from typing import Any

from geomerge.report.pages.model import Number, Page, Section, Table
from geomerge.report.pages.sparse import (
    DRIFT,
    accuracy_figure,
    along_walk,
    made,
    networks_table,
    walks_section,
)
from geomerge.report.pages.texts import percent

__all__ = ["reconfigure_page"]

_UNITS = 12  # largest number of units of a layer that are listed


def reconfigure_page(report: dict[str, Any]) -> Page:
    """Return the page of a reconfiguration.

    Args:
        report: Content of ``report.json``.
    """
    moves = report["configurations"]
    curves = [one["curve"] for one in moves]
    last, dense = moves[-1], report["dense"]
    ticks = [k + p["t"] for k, curve in enumerate(curves) for p in curve]
    rows = [dense, *(row for one in moves for row in (
        {**one["result"], "name": one["name"]},
        {**one["cut_out"], "name": f"{one['name']}, removed at once"},
    ))]  # fmt: skip
    return Page(
        kind="reconfigure",
        title=f"{report['network']['file']} through {len(moves)} configurations",
        numbers=[
            Number(percent(last["result"]["test"]), f"{last['name']}, the last, test",
                   f"dense: {percent(dense['test'])}"),
            Number(f"{report['cost']['epochs']:.3g}", "epochs of training in total",
                   report["cost"]["meaning"]),
        ],
        verdict=[
            f"{one['name']}: {percent(one['result']['test'])} on test after {one['epochs']:.2g} "
            f"epochs; {percent(one['cut_out']['test'])} if its units are removed at once."
            for one in moves
        ],
        notes=report.get("notes", []),
        first=accuracy_figure(curves, ticks, report["dense_held_out"], None),
        sections=[
            along_walk(curves, ticks, report["dense_held_out"]),
            Section("Configurations", [
                DRIFT,
                networks_table(rows, last["name"]),
                Table(
                    "Removed units",
                    ("configuration", "layer", "number", "units"),
                    [
                        [one["name"], layer, str(len(units)), _named(units)]
                        for one in moves
                        for layer, units in one["removed"].items()
                    ],
                ),
            ]),
            walks_section([{**one["path"], "name": one["name"]} for one in moves]),
            made(report),
        ],
    )  # fmt: skip


def _named(units: list[int]) -> str:
    rest = len(units) - _UNITS
    return ", ".join(map(str, units[:_UNITS])) + (f" and {rest} more" if rest > 0 else "")
