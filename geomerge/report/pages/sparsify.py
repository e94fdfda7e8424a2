"""Page of a sparsification: accuracies along the walk, baselines, zeros by layer, paths."""

from __future__ import annotations

from typing import Any

from geomerge.report.pages.charts import bars
from geomerge.report.pages.looks import Axis
from geomerge.report.pages.model import Figure, Number, Page, Picture, Section, Table
from geomerge.report.pages.sparse import (
    DRIFT,
    accuracy_figure,
    along_walk,
    made,
    networks_table,
    walks_section,
)
from geomerge.report.pages.texts import percent, points

__all__ = ["sparsify_page"]


def sparsify_page(report: dict[str, Any]) -> Page:
    """Return the page of a sparsification.

    Args:
        report: Content of ``report.json``.
    """
    rows = {row["name"]: row for row in report["results"]}
    end, dense = report["results"][-1], rows["dense"]
    gone = sum(map(len, report["removed"].values()))
    walk = ([report["curve"]], _share_gone(report), report["dense_held_out"])
    what = f"{gone} units removed" if gone else f"{percent(end['zeros'])} of the weights removed"
    return Page(
        kind="sparsify",
        title=f"{report['network']['file']}, {what}",
        numbers=[
            Number(percent(end["test"]), f"on {report['network']['task']}, test",
                   f"dense: {percent(dense['test'])}"),
            Number(percent(end["zeros"]), "of the prunable weights are zero",
                   f"{gone} units" if gone else ""),
        ],
        verdict=[
            f"{points(dense['test'] - end['test'])} points below the dense network on test, and "
            f"the dense network's label for {percent(end['agreement'])} of the selection inputs.",
            *(_against(name, row, end) for name, row in rows.items() if _is_baseline(name, end)),
        ],
        notes=report.get("notes", []),
        first=accuracy_figure(*walk, start=None),
        sections=[
            along_walk(*walk),
            Section("Baselines", [DRIFT, networks_table(report["results"], end["name"])]),
            walks_section(report["paths"]),
            _layers(report),
            Section(
                "Paths on the surface of the functional change",
                [Picture("paths.svg", "The paths of all walks, over the functional change in the "
                         "plane of their first two principal directions.", large=True)],
            ),
            made(report),
        ],
    )  # fmt: skip


def _share_gone(report: dict[str, Any]) -> list[float]:
    if report["removed"]:
        return [float(p["removed"]) for p in report["curve"]]
    return [100 * p["zeros"] for p in report["curve"]]


def _is_baseline(name: str, end: dict[str, Any]) -> bool:
    return name not in ("dense", end["name"])


def _against(name: str, row: dict[str, Any], end: dict[str, Any]) -> str:
    gap = 100 * (end["test"] - row["test"])
    word = "above" if gap >= 0 else "below"
    return f"{abs(gap):.1f} points {word} {name} on test ({percent(row['test'])} there)."


def _layers(report: dict[str, Any]) -> Section:
    rows = [
        {"layer": one["name"], "zero": 100 * one["zero"] / one["weights"]}
        for one in report["layers"]
    ]
    return Section(
        "Layers",
        [
            Figure(
                "Share of zeros",
                "Share of zeros among the weights of each layer that can be pruned.",
                bars(rows, "layer", Axis("zero", "zeros, %", (0, 100))),
                Table(
                    "Layers",
                    ("layer", "weights", "zero", "left"),
                    [
                        [
                            one["name"],
                            f"{one['weights']:,}",
                            f"{one['zero']:,}",
                            f"{one['weights'] - one['zero']:,}",
                        ]
                        for one in report["layers"]
                    ],
                ),
            )
        ],
    )
