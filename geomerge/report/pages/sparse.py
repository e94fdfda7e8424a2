"""Sections shared by the pages of sparsifications and reconfigurations."""

from __future__ import annotations

from typing import Any

from geomerge.report.pages.charts import lines
from geomerge.report.pages.looks import Axis
from geomerge.report.pages.made import made_section
from geomerge.report.pages.model import Explorer, Figure, Section, Table
from geomerge.report.pages.texts import number, percent

__all__ = ["DRIFT", "accuracy_figure", "along_walk", "made", "networks_table", "walks_section"]

DRIFT = (
    "As dense is the share of selection inputs that get the dense network's label; drift is the "
    "mean squared change of its outputs there."
)


def accuracy_figure(
    curves: list[list[dict[str, Any]]], xs: list[float], dense: float, start: int | None
) -> Figure:
    """Return the accuracy along walks, in order, compared with one-shot removal."""
    curve = [point for one in curves for point in one]
    several = len(curves) > 1
    removed = any(point["removed"] for point in curve)
    share = "units removed" if removed else "weights removed, %"
    title = "configurations walked" if several else share
    kinds = {"select": "walk", "naive": "removed at once"}
    rows = [
        {"i": i, "x": x, "accuracy": 100 * point[key], "of": name}
        for key, name in kinds.items()
        for i, (x, point) in enumerate(zip(xs, curve, strict=True))
    ]
    return Figure(
        "Accuracy along the walk",
        "Selection split. The walk is compared with the dense network in which the same weights "
        f"are set to zero without compensation. The dense network has {percent(dense)}.",
        lines(rows, Axis("x", title), Axis("accuracy", "accuracy, %"), "of", start=start),
        Table(
            "Points of the walk",
            (title, "accuracy", "removed at once", "as dense", "drift", "zeros", "units removed"),
            [
                [
                    number(x), percent(p["select"]), percent(p["naive"]), percent(p["agreement"]),
                    number(p["drift"]), percent(p["zeros"]), str(p["removed"]),
                ]
                for x, p in zip(xs, curve, strict=True)
            ],
        ),
    )  # fmt: skip


def along_walk(curves: list[list[dict[str, Any]]], xs: list[float], dense: float) -> Section:
    """Return the interactive section of the points along the walks."""
    curve = [point for one in curves for point in one]
    start = len(curve) - 1
    drift = [
        {"i": i, "x": x, "drift": p["drift"], "of": "walk"}
        for i, (x, p) in enumerate(zip(xs, curve, strict=True))
        if p["drift"] > 0
    ]
    explorer = Explorer(
        label="Position on the walk",
        names=[f"point {i} of {start}, {percent(p['zeros'])} zero" for i, p in enumerate(curve)],
        start=start,
        columns=("walk",),
        rows=[
            ("accuracy (selection split)", [[percent(p["select"])] for p in curve]),
            ("removed at once", [[percent(p["naive"])] for p in curve]),
            ("as dense", [[percent(p["agreement"])] for p in curve]),
            ("drift", [[number(p["drift"])] for p in curve]),
            ("units removed", [[str(p["removed"])] for p in curve]),
        ],
    )
    accuracy = accuracy_figure(curves, xs, dense, start)
    parts: list[Any] = [explorer, accuracy]
    if drift:
        parts.append(
            Figure(
                "Drift along the walk",
                "Mean squared change of the outputs from the dense network's, on selection "
                "inputs. The scale is logarithmic.",
                lines(
                    drift,
                    Axis("x", accuracy.table.headings[0]),
                    Axis("drift", "drift", log=True),
                    "of",
                    start=start,
                ),
                accuracy.table,
            )
        )
    return Section("Along the walk", parts)


def networks_table(rows: list[dict[str, Any]], strong: str) -> Table:
    """Return the table of networks and their accuracies, with one row emphasised."""
    return Table(
        "Networks",
        ("", "zeros", "test", "selection", "as dense", "drift"),
        [
            [
                row["name"],
                percent(row["zeros"]),
                percent(row["test"]),
                percent(row["select"]),
                percent(row["agreement"]),
                number(row["drift"]),
            ]
            for row in rows
        ],
        [strong],
    )


def walks_section(paths: list[dict[str, Any]]) -> Section:
    """Return the section of walks, their lengths and the shadow prices of constraints."""
    prices = [
        [path["name"], name, number(price)]
        for path in paths
        for name, price in path["shadow_prices"].items()
    ]
    return Section(
        "Walks and shadow prices",
        [
            "Length is the sum of the steps' functional changes; of walks with nearly the best end "
            "the shortest is kept.",
            Table(
                "Walks",
                ("walk", "length", "damping", "steps", "as dense", ""),
                [
                    [
                        path["name"],
                        number(path["length"]),
                        number(path["damping"]),
                        str(path["steps"]),
                        percent(path["agreement"]),
                        "kept" if path["chosen"] else "",
                    ]
                    for path in paths
                ],
                [path["name"] for path in paths if path["chosen"]],
            ),
            Table("Budgets: the largest shadow price", ("walk", "budget", "price"), prices)
            if prices
            else "No budget bound along a walk.",
        ],
    )


def made(report: dict[str, Any]) -> Section:
    """Return the section of data, cost, command and recipe."""
    data = [
        [use, part["split"], str(part["inputs"]), "yes" if part["labels"] else "no"]
        for use, part in report["data"].items()
        if part is not None
    ]
    cost = report["cost"]
    return made_section(
        report,
        [
            Table("Data used", ("for", "split", "inputs", "labels"), data),
            f"Cost: {cost['epochs']:.3g} epochs ({cost['meaning']}).",
        ],
    )
