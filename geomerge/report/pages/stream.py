"""Page of a stream: average accuracies, accuracies by task, forgetting, and all methods."""

from __future__ import annotations

from typing import Any

from geomerge.report.pages.charts import bars, lines
from geomerge.report.pages.looks import Axis
from geomerge.report.pages.made import made_section
from geomerge.report.pages.maps import heat
from geomerge.report.pages.model import Explorer, Figure, Number, Page, Section, Table
from geomerge.report.pages.texts import percent, points
from geomerge.report.tables import stream_table

__all__ = ["stream_page"]

_MEANING = (
    "acc, BWT and forget are of the test splits, in percent: average over all tasks after the "
    "last, mean change of each task since it was learned, mean loss since it was best. MB, inputs "
    "and labels are kept between experiences; passes are epochs; train and merge are seconds"
)


def stream_page(report: dict[str, Any]) -> Page:
    """Return the page of a stream.

    Args:
        report: Content of ``report.json``.
    """
    rows, stream = report["rows"], report["stream"]
    ours = rows[0]
    in_turns = [row for row in rows if len(row["matrix"]) > 1]  # others had all tasks at once
    others = sorted(rows[1:], key=lambda row: -row["accuracy"])
    return Page(
        kind="stream",
        title=f"{stream['name']}: {len(stream['experiences'])} experiences, {len(rows)} methods",
        numbers=[
            Number(percent(ours["accuracy"]), f"{ours['name']}: average over all tasks, test",
                   f"{ours['kept']['examples']} examples kept"),
            Number(points(ours["forgetting"]), f"{ours['name']}: forgetting, points",
                   f"{ours['kept']['megabytes']:.1f} MB kept"),
        ],
        verdict=[
            stream["meaning"][0].upper() + stream["meaning"][1:] + ".",
            *(_against(ours, row) for row in others),
        ],
        notes=report.get("notes", []),
        first=_averages(report, None) if in_turns else _finals(report),
        sections=[
            *([_along(report), _matrix(report, in_turns[0])] if in_turns else []),
            _table(report),
            _about(report),
            made_section(report, exact=False),
        ],
    )  # fmt: skip


def _against(ours: dict[str, Any], row: dict[str, Any]) -> str:
    gap = 100 * (ours["accuracy"] - row["accuracy"])
    kept = row["kept"]["examples"]
    data = f", which stores {kept} examples" if kept else ""
    return f"{abs(gap):.1f} points {'above' if gap >= 0 else 'below'} {row['name']}{data}."


def _averages(report: dict[str, Any], start: int | None) -> Figure:
    rows = [row for row in report["rows"] if len(row["average"]) > 1]
    places = [
        {"i": k, "after": k + 1, "average": 100 * value, "method": row["name"]}
        for row in rows
        for k, value in enumerate(row["average"])
    ]
    once = [row for row in report["rows"] if len(row["average"]) == 1]
    about = "".join(
        f" {row['name']}, all tasks at once: {percent(row['accuracy'])}." for row in once
    )
    return Figure(
        "Average accuracy on the tasks learned so far",
        f"Test splits, after each experience.{about}",
        lines(places, Axis("after", "after experience"), Axis("average", "accuracy, %"), "method",
              start=start),
        Table(
            "Average accuracy on the tasks learned so far",
            ("method", *(f"after {k + 1}" for k in range(len(report["stream"]["experiences"])))),
            [[row["name"], *(percent(value) for value in row["average"])] for row in rows],
        ),
    )  # fmt: skip


def _finals(report: dict[str, Any]) -> Figure:
    rows = [{"method": r["name"], "accuracy": 100 * r["accuracy"]} for r in report["rows"]]
    return Figure(
        "Average accuracy over all tasks",
        "Test splits; all methods had all tasks at once.",
        bars(rows, "method", Axis("accuracy", "accuracy, %", (0, 100))),
        Table(
            "Average accuracy over all tasks",
            ("method", "accuracy"),
            [[row["name"], percent(row["accuracy"])] for row in report["rows"]],
        ),
    )


def _along(report: dict[str, Any]) -> Section:
    names = [e["name"] for e in report["stream"]["experiences"]]
    rows = [row for row in report["rows"] if len(row["matrix"]) > 1]
    last = len(names) - 1

    def cell(row: dict[str, Any], after: int, task: int) -> str:
        line = row["matrix"][after] if after < len(row["matrix"]) else []
        return percent(line[task]) if task < len(line) else "-"

    explorer = Explorer(
        label="After experience",
        names=[f"{k + 1} of {last + 1}: {name}" for k, name in enumerate(names)],
        start=last,
        columns=[row["name"] for row in rows],
        rows=[
            (
                f"task {task + 1}: {name}",
                [[cell(row, after, task) for row in rows] for after in range(last + 1)],
            )
            for task, name in enumerate(names)
        ],
    )
    return Section(
        "Along the stream",
        [
            "The slider moves along the stream: accuracy of every method on every task learned so "
            "far, on the test splits.",
            explorer,
            _averages(report, last),
        ],
    )


def _matrix(report: dict[str, Any], row: dict[str, Any]) -> Section:
    names = [e["name"] for e in report["stream"]["experiences"]]
    cells = [
        {"after": after + 1, "task": task + 1, "accuracy": 100 * value}
        for after, line in enumerate(row["matrix"])
        for task, value in enumerate(line)
    ]
    tables = [
        Table(
            f"{one['name']}: accuracy on each task",
            ("after experience", *names),
            [
                [str(after + 1), *(percent(v) for v in line), *["-"] * (len(names) - len(line))]
                for after, line in enumerate(one["matrix"])
            ],
        )
        for one in report["rows"]
    ]
    figure = Figure(
        f"{row['name']}: accuracy on each task after each experience",
        "A stronger shade is a higher accuracy; a row that fades to the right is a forgotten task.",
        heat(
            cells, Axis("after", "after experience", ordinal=True),
            Axis("task", "task", ordinal=True), Axis("accuracy", "accuracy, %"),
            numbers=len(names) <= 10,
        ),
        tables[0],
    )  # fmt: skip
    return Section("Tasks", [figure, *tables[1:]])


def _table(report: dict[str, Any]) -> Section:
    headings, cells = stream_table(report)
    shown = [row for row in report["rows"] if row["forgetting"] is not None]
    table = Table(_MEANING, headings, cells, [report["rows"][0]["name"]])
    if not shown:
        return Section("All methods", [table])
    return Section(
        "All methods",
        [
            Figure(
                "Forgetting",
                "Mean loss of accuracy of each task since it was best, in points; shorter is "
                "better.",
                bars(
                    [{"method": r["name"], "points": 100 * r["forgetting"]} for r in shown],
                    "method",
                    Axis("points", "points"),
                    strong=report["rows"][0]["name"],
                ),
                Table(
                    "Forgetting, points",
                    ("method", "forgetting"),
                    [[row["name"], points(row["forgetting"])] for row in shown],
                ),
            ),
            table,
        ],
    )


def _about(report: dict[str, Any]) -> Section:
    rows = [[row["name"], row["about"]] for row in report["rows"]]
    rows += [[name, f"not in the table: {why}"] for name, why in report["diverged"].items()]
    return Section("Methods", [Table("Methods", ("method", ""), rows)])
