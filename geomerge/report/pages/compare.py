"""Page of a comparison: worst drops, accuracies on both tasks, paths, and all methods."""

from __future__ import annotations

from typing import Any

from geomerge.evaluation.measures import drop
from geomerge.report.compare import GROUPS
from geomerge.report.pages.charts import bars, lines, scatter
from geomerge.report.pages.looks import Axis
from geomerge.report.pages.made import made_section
from geomerge.report.pages.model import Figure, Number, Page, Section, Table
from geomerge.report.pages.texts import better_by, drop_unit, measure_of, points, shown
from geomerge.report.tables import DATA_MEANING, compare_table

__all__ = ["compare_page"]

_NAMED = ("joint-walk", "sketch-walk", "joint-training", "straight-line")  # of the first screen


def compare_page(report: dict[str, Any]) -> Page:
    """Return the page of a comparison.

    Args:
        report: Content of ``report.json``.
    """
    rows = sorted(_known(report), key=lambda row: row["worst_drop"])
    networks = report["networks"]
    title = f"{networks['a']['task']} and {networks['b']['task']} in one network"
    last = [_about(report), made_section(report, exact=False)]
    if not rows:
        verdict = ["No method applies to these networks; the reasons are listed below."]
        return Page("compare", title, [], verdict, None, last)
    merged = [row for row in rows if row["group"] != "networks"] or rows
    best = min(merged, key=lambda row: _select_drop(report, row))
    unit = drop_unit(networks.values())
    return Page(
        kind="compare",
        title=f"{title}: {len(merged)} methods",
        numbers=[
            Number(
                shown(best["test"][side], network),
                f"{best['name']} on {network['task']} (task of {side}), test",
                f"its own network: {shown(network['expert_test'], network)}",
            )
            for side, network in networks.items()
        ],
        verdict=[
            f"{best['name']} has the smallest worst drop on the selection splits, and is shown "
            f"here; on test its worst drop is {points(best['worst_drop'])} {unit}.",
            *(
                better_by(row["name"], best["worst_drop"], row["worst_drop"], unit)
                for row in merged
                if row["name"] in _NAMED and row is not best
            ),
            f"Points were picked by {report['pick']} on the selection splits; methods with "
            f"training had {report['budget']:,} samples.",
        ],
        notes=report.get("notes", []),
        first=_plane(report, rows),
        sections=[_table(report, rows, best["name"]), *_ways(rows, report), *last],
    )


def _select_drop(report: dict[str, Any], row: dict[str, Any]) -> float:
    """Return the worst drop of a row below the networks alone, on the selection splits."""
    drops = [
        drop(n["expert_select"], row["select"][side], measure_of(n))
        for side, n in report["networks"].items()
    ]
    return float(max(drops))


def _known(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["reason"] is None]


def _plane(report: dict[str, Any], rows: list[dict[str, Any]]) -> Figure:
    a, b = (report["networks"][side] for side in "ab")
    places = [
        {
            "method": row["name"],
            "a": 100 * row["test"]["a"],
            "b": 100 * row["test"]["b"],
            "group": GROUPS[row["group"]],
        }
        for row in rows
    ]
    return Figure(
        "Both tasks at once",
        "Test accuracy on the two tasks (of language models 1 / perplexity), a point for each "
        "method; the dotted lines are the networks trained for one task each. Upper right is best; "
        "hover over a point for its name.",
        scatter(
            places,
            Axis("a", f"{a['task']}, the task of a, %"),
            Axis("b", f"{b['task']}, the task of b, %"),
            "method",
            "group",
            cross=(100 * a["expert_test"], 100 * b["expert_test"]),
        ),
        Table(
            "Test accuracy",
            ("method", "task of a", "task of b"),
            [[row["name"], shown(row["test"]["a"], a), shown(row["test"]["b"], b)] for row in rows],
        ),
    )


def _table(report: dict[str, Any], rows: list[dict[str, Any]], best: str) -> Section:
    headings, cells = compare_table(report)
    unit = drop_unit(report["networks"].values())
    whole = (
        "Percentage points of the worse task below its own network on test"
        if unit == "points"
        else "Rise of the worse perplexity above that of its own network on test, in percent"
    )
    return Section(
        "All methods",
        [
            Figure(
                "Worst drop below the networks alone",
                f"{whole}; shorter is better.",
                bars(
                    [{"method": row["name"], "drop": 100 * row["worst_drop"]} for row in rows],
                    "method",
                    Axis("drop", "percent" if unit == "%" else "points"),
                    strong=best,
                ),
                Table(
                    f"Worst drop, {unit}",
                    ("method", "drop"),
                    [[row["name"], points(row["worst_drop"])] for row in rows],
                ),
            ),
            Table(DATA_MEANING, headings, cells),
        ],
    )


def _ways(rows: list[dict[str, Any]], report: dict[str, Any]) -> list[Section]:
    curved = [row for row in rows if len(row["curve"]) > 1]
    if not curved:
        return []
    places = [
        {"method": row["name"], "share": k / (len(row["curve"]) - 1), "min": 100 * min(p.values())}
        for row in curved
        for k, p in enumerate(row["curve"])
    ]
    return [
        Section(
            "Paths to the picked points",
            [
                Figure(
                    "Smaller of the two test accuracies along the path",
                    "From the start of a method (0) to the picked point (1).",
                    lines(
                        places,
                        Axis("share", "share of the path"),
                        Axis("min", "accuracy, %"),
                        "method",
                    ),
                    Table(
                        "Accuracies along the path",
                        ("method", "point", *(report["networks"][s]["task"] for s in "ab")),
                        [
                            [
                                row["name"],
                                str(k),
                                *(shown(p[s], report["networks"][s]) for s in "ab"),
                            ]
                            for row in curved
                            for k, p in enumerate(row["curve"])
                        ],
                    ),
                )
            ],
        )
    ]


def _about(report: dict[str, Any]) -> Section:
    rows = [[row["name"], row["reason"] or row["about"]] for row in report["rows"]]
    table = Table("Methods", ("method", ""), rows)
    return Section("Description of each method, or the reason why it does not apply", [table])
