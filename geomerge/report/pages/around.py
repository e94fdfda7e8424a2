"""Surroundings of a merge's path: losses in a plane, distances by layer, changed answers."""

from __future__ import annotations

from geomerge.report.pages.charts import bars
from geomerge.report.pages.looks import Axis
from geomerge.report.pages.maps import heat
from geomerge.report.pages.model import Figure, Picture, Section, Table
from geomerge.report.pages.texts import number
from geomerge.report.plane import HIGHEST
from geomerge.report.schema import MergeRunReport

__all__ = ["answers_section", "layers_section", "plane_section", "surrogates_section"]


def plane_section(report: MergeRunReport) -> list[Section]:
    """Return the section of losses in a plane around the path; none if they were not measured."""
    plane = report["plane"]
    if plane is None:
        return []
    xs, ys = plane["xs"], plane["ys"]
    dx, dy = (xs[1] - xs[0]) / 2, (ys[1] - ys[0]) / 2
    track = [{"i": k, "x": p["x"], "y": p["y"]} for k, p in enumerate(plane["path"])]
    marks = [{"name": name, "x": x, "y": y} for name, (x, y) in plane["marks"].items()]
    off = max(point["off"] for point in plane["path"])
    figures = []
    for name, rows in plane["losses"].items():
        task = report["networks"][name]["task"]
        cells = [
            {"x": x - dx, "x2": x + dx, "y": y - dy, "y2": y + dy, "loss": _shown(rows[j][i])}
            for j, y in enumerate(ys)
            for i, x in enumerate(xs)
        ]
        axes = (
            Axis("x", "along the line between the ends"),
            Axis("y", "toward the crossover"),
            Axis("loss", "loss, nats"),
        )
        figures.append(
            Figure(
                f"Loss on {task}, the task of {name}",
                f"Mean cross-entropy (shown up to {HIGHEST:g}) on {plane['examples']} selection "
                "examples in the plane through the ends of the path and the crossover, darker "
                "where larger; axes are distances of weights. The path, and any network "
                f"between the ends, is projected; the path leaves the plane by up to {off:.2g}.",
                heat(cells, *axes, track=track, marks=marks),
                Table(
                    "Points of the path in the plane",
                    ("t", "x", "y", "off the plane"),
                    [
                        [f"{p['t']:.3f}", number(p["x"]), number(p["y"]), number(p["off"])]
                        for p in plane["path"]
                    ],
                ),
            )
        )
    return [Section("Losses around the path", figures)]


def _shown(loss: float | None) -> float:
    return HIGHEST if loss is None else min(loss, HIGHEST)


def layers_section(report: MergeRunReport) -> Section:
    """Return the section of distances from the networks by tensor."""
    names = list(report["networks"])
    rows = [
        {
            "layer": layer["name"],
            "to": f"to {name}",
            "share": layer["distance"][name] / layer["apart"],
        }
        for layer in report["layers"]
        if layer["apart"] > 0
        for name in names
    ]
    table = Table(
        "Distance of weights, by tensor",
        ("tensor", "weights", *(f"to {name}" for name in names), "ends apart"),
        [
            [
                layer["name"],
                f"{layer['weights']:,}",
                *(number(layer["distance"][name]) for name in names),
                number(layer["apart"]),
            ]
            for layer in report["layers"]
        ],
    )
    figure = Figure(
        "Distance of the crossover from each network, by layer",
        "Distance of each tensor as a share of the distance between the ends; on the straight "
        "line between these their two shares add up to one.",
        bars(rows, "layer", Axis("share", "share of the ends' distance"), series="to"),
        table,
    )
    return Section("Layers", [figure])


def _class(number: int | None) -> str:
    return "a class of another task" if number is None else str(number)


def answers_section(report: MergeRunReport) -> list[Section]:
    """Return the section of changed answers on test splits; none if no task is known."""
    rows, pictures = [], []
    for name, answers in report["answers"].items():
        task = report["networks"][name]["task"]
        rows.append([
            f"{task} ({name})",
            *(str(answers[key]) for key in ("kept", "lost", "gained", "wrong", "of")),
        ])  # fmt: skip
        for example in answers["shown"]:
            if example["image"] is not None:
                pictures.append(
                    Picture(
                        example["image"],
                        f"{task}, test example {example['index']}: class {example['label']}; "
                        f"before {_class(example['before'])}, now {_class(example['after'])}",
                    )
                )
    if not rows:
        return []
    table = Table(
        "Answers on the test split: the task's own network and the merged one",
        ("task", "both right", "lost", "gained", "both wrong", "of"),
        rows,
    )
    return [Section("Changed answers", [table, *pictures])]


def surrogates_section(report: MergeRunReport) -> list[Section]:
    """Return sections of surrogate inputs, one for each network that was merged by them."""
    sections = []
    for name, found in report.get("surrogates", {}).items():
        text = (
            f"Of {name} the weights alone were used: its metric was measured on "
            f"{found['inputs']:,} {found['kind']}. The first begins {found['first']}."
        )
        pictures = [
            Picture(file, f"surrogate input {index}; black is -2, white 2 standard deviations")
            for index, file in enumerate(found["shown"])
        ]
        sections.append(Section(f"Surrogate inputs of {name}", [text, *pictures]))
    return sections
