"""Page of a merge: accuracies along its path, candidates, comparisons, answers, certificate."""

from __future__ import annotations

from typing import Any

from geomerge.evaluation.measures import drop
from geomerge.report.pages.along import accuracy_figure, along_path
from geomerge.report.pages.around import (
    answers_section,
    layers_section,
    plane_section,
    surrogates_section,
)
from geomerge.report.pages.certified import certificate_section
from geomerge.report.pages.charts import bars
from geomerge.report.pages.looks import Axis
from geomerge.report.pages.made import made_section
from geomerge.report.pages.model import Figure, Number, Page, Section, Table
from geomerge.report.pages.texts import (
    better_by,
    drop_unit,
    interval,
    measure_of,
    points,
    shown,
)
from geomerge.report.pages.tried import budgets_section, candidates_section
from geomerge.report.schema import MergeRunReport, ResultEntry

__all__ = ["merge_page"]


def merge_page(report: MergeRunReport, steps: list[dict[str, Any]]) -> Page:
    """Return the page of a merge.

    Args:
        report: Content of ``report.json``.
        steps: Records of its path's steps, in the order stored.
    """
    networks = report["networks"]
    titles = [network["task"] or network["file"] for network in networks.values()]
    return Page(
        kind="merge",
        title=f"{' + '.join(titles)} in one network",
        numbers=_numbers(report),
        verdict=_verdict(report),
        notes=report.get("notes", []),
        first=accuracy_figure(report, None),
        sections=[
            along_path(report, steps),
            *plane_section(report),
            candidates_section(report),
            *budgets_section(report),
            _comparison(report),
            layers_section(report),
            *answers_section(report),
            *surrogates_section(report),
            _made(report),
            certificate_section(report),
        ],
    )


def _row(report: MergeRunReport, name: str) -> ResultEntry | None:
    return next((row for row in report["results"] if row["name"] == name), None)


def _numbers(report: MergeRunReport) -> list[Number]:
    crossover = _row(report, "crossover")
    assert crossover is not None, "every merge has one"
    counted = report["certificate"]["accuracies"]["crossover"]["test"]
    found = []
    for name, network in report["networks"].items():
        own = _row(report, name)
        assert own is not None, "networks are rows"
        expert = own["test"][name]
        detail = "" if expert is None else f"its own network: {shown(expert, network)}; "
        found.append(
            Number(
                shown(crossover["test"][name], network),
                f"on {network['task'] or 'an unknown task'} (task of {name}), test",
                detail + interval(counted.get(name)),
            )
        )
    return found


def worst_drop(report: MergeRunReport, row: ResultEntry | None) -> float | None:
    """Return the worst drop of a row below the networks alone; None if a task is unknown.

    It is a difference of accuracies; of language models the rise of the perplexity, as a share.
    """
    if row is None:
        return None
    drops: list[float] = []
    for name, network in report["networks"].items():
        own, value = _row(report, name), row["test"][name]
        expert = None if own is None else own["test"][name]
        if expert is None or value is None:
            return None
        drops.append(drop(expert, value, measure_of(network)))
    return max(drops)


def _verdict(report: MergeRunReport) -> list[str]:
    ours = worst_drop(report, _row(report, "crossover"))
    at = report["crossover"]
    better = at.get("better")
    verdict = [] if better is None else [f"{better[:1].upper()}{better[1:]}."]
    verdict += [
        f"Picked at t = {at['t']:.3f} of the path by {at['pick']}, on the selection splits."
    ]
    if ours is None:
        return [*verdict, "The worst drop is unknown, because not every task is known."]
    unit = drop_unit(report["networks"].values())
    if unit == "%":
        word = "above" if ours >= 0 else "below"
        verdict.append(
            f"The worst perplexity is {abs(100 * ours):.1f} % {word} that of its own network on "
            "test."
        )
    else:
        below = "below" if ours >= 0 else "above"
        verdict.append(
            f"The task with the worst drop is {abs(100 * ours):.1f} points {below} its own network "
            "on test."
        )
    names = {
        "straight line": "the straight line",
        "mean of the weights": "the mean of the weights",
        "joint training": "a new network trained on labels of as many inputs as a joint walk takes",
    }
    for row, words in names.items():
        theirs = worst_drop(report, _row(report, row))
        if theirs is not None:
            verdict.append(better_by(words, ours, theirs, unit))
        elif row == "joint training":
            verdict.append("Joint training is not in the table; the reason is in the notes.")
    return verdict


def _comparison(report: MergeRunReport) -> Section:
    networks = report["networks"]
    drops = {row["name"]: worst_drop(report, row) for row in report["results"]}
    losses = drop_unit(networks.values()) == "%"
    what = "Perplexity" if losses else "Accuracy"
    worst = "worst rise, %" if losses else "worst drop, points"
    known = [{"name": n, "drop": 100 * d} for n, d in drops.items() if d is not None]
    table = Table(
        f"{what}, test split (selection split in brackets)",
        ("", *(f"task of {name}" for name in networks), worst),
        [
            [
                row["name"],
                *(
                    f"{shown(row['test'][name], network)} ({shown(row['select'][name], network)})"
                    for name, network in networks.items()
                ),
                points(drops[row["name"]]),
            ]
            for row in report["results"]
        ],
        ["crossover"],
    )
    if not known:
        return Section("Compared with other networks", [table])
    figure = Figure(
        "Worst drop below the networks alone",
        (
            "Rise of the worst perplexity above that of its own network on test, in percent"
            if losses
            else "Percentage points of the worst task below its own network on test"
        )
        + "; shorter is better. Points of walks and lines were picked by the same rule on the "
        "selection splits.",
        bars(known, "name", Axis("drop", "percent" if losses else "points"), strong="crossover"),
        table,
    )
    return Section("Compared with other networks", [figure])


def _made(report: MergeRunReport) -> Section:
    data = report["data"]
    uses = (("walk", data["walk"]), ("pick", data["pick"]), ("beside", data["beside"]))
    rows = [
        [use, d["for"], d["task"] or "-", d["split"], str(d["inputs"]), _yes_no(d["labels"])]
        for use, used in uses
        for d in used
    ]
    return made_section(
        report,
        [Table("Data used", ("for", "network", "task", "split", "inputs", "labels"), rows)],
    )


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
