"""Explorer of a merge's path: accuracies, distances, drift and classes at every point."""

from __future__ import annotations

from typing import Any

from geomerge.report.pages.charts import bars, lines
from geomerge.report.pages.looks import Axis
from geomerge.report.pages.model import Explorer, Figure, Section, Table
from geomerge.report.pages.texts import measure_of, number, percent, shown
from geomerge.report.schema import CurveEntry, MergeRunReport

__all__ = ["accuracy_figure", "along_path"]

_STEPS = 300  # largest number of steps in a chart
_KINDS = ("predicted", "measured")  # kinds of functional changes


def accuracy_figure(report: MergeRunReport, start: int | None) -> Figure:
    """Return the figure of accuracies along the path, with the crossover marked.

    Args:
        report: Content of ``report.json``.
        start: First position of the explorer. None makes a chart without one.
    """
    curve, t = report["curve"], report["crossover"]["t"]
    labels = _labels(report)
    rows = [
        {"i": i, "t": p["t"], "task": labels[name], "accuracy": 100 * value}
        for i, p in enumerate(curve)
        for name, value in p["accuracy"].items()
        if value is not None
    ]
    first, *_, last = report["networks"]
    if not rows:
        return _distance_figure(report, start)
    measured = _measured(report)
    if measured == "accuracy":
        title, axis = "Accuracy", Axis("accuracy", "accuracy, %", (0, 100))
    else:  # on one scale with accuracies, and better the higher as well
        title, axis = "Inverse of the perplexity", Axis("accuracy", "1 / perplexity, %")
    return Figure(
        f"{title} along the path",
        f"{title} of every task from {first} (t = 0) to {last} (t = 1), on the selection splits; "
        "t is the share of the path's length. The dotted line marks the picked network.",
        lines(
            rows,
            Axis("t", f"t, from {first} (0) to {last} (1)"),
            axis,
            "task",
            mark=(t, f"crossover, t = {t:.3f}"),
            start=start,
        ),
        _points_table(report),
    )


def _distance_figure(report: MergeRunReport, start: int | None) -> Figure:
    """Return the figure of distances, for merges whose tasks are unknown."""
    rows = [
        {"i": i, "t": p["t"], "network": f"to {name}", "distance": value}
        for i, p in enumerate(report["curve"])
        for name, value in p["distance"].items()
    ]
    return Figure(
        "Distance along the path",
        "Distance of weights to each network; no task is known, so that there is no accuracy.",
        lines(
            rows,
            Axis("t", "t"),
            Axis("distance", "distance"),
            "network",
            mark=(report["crossover"]["t"], "crossover"),
            start=start,
        ),
        _points_table(report),
    )


def along_path(report: MergeRunReport, steps: list[dict[str, Any]]) -> Section:
    """Return the interactive section on the points of the path.

    Args:
        report: Content of ``report.json``.
        steps: Records of the path's steps.
    """
    curve, names = report["curve"], list(report["networks"])
    start = next(i for i, p in enumerate(curve) if p["t"] == report["crossover"]["t"])
    measured = _measured(report)
    networks = report["networks"]
    scores = [[shown(p["accuracy"][name], networks[name]) for name in names] for p in curve]
    distances = [[number(p["distance"][name]) for name in names] for p in curve]
    drifts = {
        kind: [[number(_drift_at(p, kind, name)) for name in names] for p in curve]
        for kind in _KINDS
    }
    explorer = Explorer(
        label="Position on the path (t)",
        names=[
            f"t = {p['t']:.3f}" + (", the crossover" if i == start else "")
            for i, p in enumerate(curve)
        ],
        start=start,
        columns=[f"{_labels(report)[name]}" for name in names],
        rows=[
            (f"{measured} (selection split)", scores),
            ("distance of weights", distances),
            ("drift predicted by the sketch", drifts["predicted"]),
            ("drift measured", drifts["measured"]),
        ],
    )
    figures = [accuracy_figure(report, start), *_drift(report, start), *_classes(report, start)]
    return Section(
        "Along the path",
        [
            "The slider moves along the path: the numbers and the figures below are of its point. "
            "Drift is the mean squared change of a network's outputs on its own task, predicted by "
            "the metric and measured.",
            explorer,
            *figures,
            *_steps(steps),
        ],
    )


def _measured(report: MergeRunReport) -> str:
    """Return what the networks are measured by: accuracy, or perplexity if any is."""
    losses = any(measure_of(network) == "loss" for network in report["networks"].values())
    return "perplexity" if losses else "accuracy"


def _labels(report: MergeRunReport) -> dict[str, str]:
    return {
        name: f"{network['task'] or 'unknown task'} ({name})"
        for name, network in report["networks"].items()
    }


def _points_table(report: MergeRunReport) -> Table:
    names = list(report["networks"])
    return Table(
        "Points of the path",
        (
            "t",
            *(f"{_measured(report)}, {_labels(report)[n]}" for n in names),
            *(f"distance to {n}" for n in names),
        ),
        [
            [
                f"{p['t']:.3f}",
                *(shown(p["accuracy"][n], report["networks"][n]) for n in names),
                *(number(p["distance"][n]) for n in names),
            ]
            for p in report["curve"]
        ],
        [f"{report['crossover']['t']:.3f}"],
    )


def _drift_at(point: CurveEntry, kind: str, name: str) -> float | None:
    return (point["predicted"] if kind == _KINDS[0] else point["measured"])[name]


def _drift(report: MergeRunReport, start: int) -> list[Figure]:
    labels = _labels(report)
    rows = [
        {"i": i, "t": p["t"], "drift": value, "of": f"{labels[name]}, {kind}"}
        for name in labels
        for kind in _KINDS
        for i, p in enumerate(report["curve"])
        if (value := _drift_at(p, kind, name)) is not None and value > 0
    ]
    if not rows:
        return []
    columns = [(name, kind) for name in labels for kind in _KINDS]
    return [
        Figure(
            "Drift from each network, predicted and measured",
            "Where the two lines of a network diverge, the quadratic model of its function no "
            "longer holds: it is accurate near the network only. The scale is logarithmic.",
            lines(
                rows, Axis("t", "t"), Axis("drift", "mean squared change of outputs", log=True),
                "of", mark=(report["crossover"]["t"], ""), start=start,
            ),
            Table(
                "Drift along the path",
                ("t", *(f"{labels[name]}, {kind}" for name, kind in columns)),
                [
                    [f"{p['t']:.3f}", *(number(_drift_at(p, kind, name)) for name, kind in columns)]
                    for p in report["curve"]
                ],
            ),
        )
    ]  # fmt: skip


def _classes(report: MergeRunReport, start: int) -> list[Figure]:
    figures = []
    for name, label in _labels(report).items():
        classes = list(report["curve"][0]["classes"][name])
        if not classes:
            continue
        rows = [
            {"i": i, "class": k, "accuracy": 100 * value}
            for i, p in enumerate(report["curve"])
            for k, value in p["classes"][name].items()
        ]
        figures.append(
            Figure(
                f"Classes of {label} at this point",
                "Accuracy of each class on the selection split at the position chosen above.",
                bars(rows, "class", Axis("accuracy", "accuracy, %", (0, 100)), start=start),
                Table(
                    f"Accuracy of each class of {label} along the path",
                    ("t", *classes),
                    [
                        [f"{p['t']:.3f}", *(percent(p["classes"][name].get(k)) for k in classes)]
                        for p in report["curve"]
                    ],
                ),
            )
        )
    return figures


def _steps(steps: list[dict[str, Any]]) -> list[Figure]:
    stride = max(1, len(steps) // _STEPS)
    few = [step for step in steps[::stride] if step["measured"] is not None]
    rows = [
        {"step": step["step"], "change": step[kind], "of": f"leg of {step['leg']}, {kind}"}
        for kind in _KINDS
        for step in few
        if step[kind] > 0
    ]
    if not rows:
        return []
    return [
        Figure(
            "Change of each step, predicted and measured",
            "Change of the preserved function by each step, predicted by the metric and measured. "
            "The scale is logarithmic; of long walks not every step is shown.",
            lines(
                rows,
                Axis("step", "step, in the order walked"),
                Axis("change", "change", log=True),
                "of",
            ),
            Table(
                "Steps",
                ("step", "leg", "length of the step", "predicted", "measured"),
                [
                    [
                        str(s["step"]),
                        s["leg"],
                        *(number(s[k]) for k in ("norm", *_KINDS)),
                    ]
                    for s in few
                ],
            ),
        )
    ]
