"""Line, bar and scatter charts, as Vega-Lite specifications."""

from __future__ import annotations

import json
from typing import Any

from geomerge.report.pages.looks import (
    COLORS,
    FAINT,
    INK,
    Axis,
    Part,
    Rows,
    along,
    colors,
    dashes,
    one_color,
    shapes,
    spec,
    tip,
)

__all__ = ["bars", "lines", "scatter"]


_HEIGHT = 300  # pixels of a line chart
_NOW = {"filter": "datum.i == at"}  # the point at which the explorer is


def lines(
    rows: Rows,
    x: Axis,
    y: Axis,
    series: str,
    *,
    mark: tuple[float, str] | None = None,
    start: int | None = None,
) -> dict[str, Any]:
    """Return lines through points, one for each series.

    Args:
        rows: Dictionaries of the points; with ``start`` each has its number ``i``.
        x: Horizontal axis.
        y: Vertical axis.
        series: Key of the series' name.
        mark: Place of a vertical line, and the text next to it.
        start: First place of the explorer, if the chart follows one.
    """
    names = list(dict.fromkeys(row[series] for row in rows))
    scale: Part = {"zero": False} if y.domain is None else {"domain": list(y.domain)}
    scale = {"type": "log"} if y.log else scale
    places = [row[x.key] for row in rows]
    whole = {"tickMinStep": 1} if all(isinstance(v, int) for v in places) else {}
    place = along(x, title=x.title, scale={"nice": False}, axis=whole)
    value = along(y, title=y.title, scale=scale)
    known = {"filter": f"isValid(datum['{y.key}'])"}
    shared = {
        "x": place,
        "y": value,
        "color": colors(series, names),
        "tooltip": [tip(series, "nominal"), tip(x.key), tip(y.key)],
    }
    order = {"field": "i" if "i" in rows[0] else x.key, "type": "quantitative"}
    layers: list[Part] = [
        {
            "transform": [known],
            "mark": {"type": "line"},
            "encoding": {**shared, "strokeDash": dashes(series, names), "order": order},
        },
        {
            "transform": [known],
            "mark": {"type": "point", "filled": True, "size": 28},
            "encoding": {**shared, "shape": shapes(series, names)},
        },
    ]
    if mark is not None:
        at, text = mark
        layers.append(_rule(x, at))
        if text:
            left = at > (min(places) + max(places)) / 2
            words = {
                "type": "text",
                "text": text,
                "align": "right" if left else "left",
                "dx": -6 if left else 6,
                "y": "height",
                "dy": -8,
                "color": INK,
            }
            layers.append({**_rule(x, at), "mark": words})
    chart: Part = {"data": {"values": list(rows)}, "layer": layers}
    if start is None:
        return spec(chart, _HEIGHT)
    now = [known, _NOW]
    line = {"type": "rule", "color": FAINT, "strokeWidth": 1.5}
    point = {"type": "point", "size": 160, "strokeWidth": 2, "color": INK}
    layers += [
        {"transform": now, "mark": line, "encoding": {"x": place}},
        {"transform": now, "mark": point, "encoding": {"x": place, "y": value}},
    ]
    return spec({**chart, "params": [_explorer(start)]}, _HEIGHT)


def bars(
    rows: Rows,
    name: str,
    value: Axis,
    *,
    series: str | None = None,
    start: int | None = None,
    strong: str | None = None,
) -> dict[str, Any]:
    """Return horizontal bars, in the order of the rows, grouped by name if there is a series.

    Args:
        rows: Dictionaries of the bars; with ``start`` each has its point's number ``i``.
        name: Key of the bar's name.
        value: Axis of the lengths.
        series: Key of the series' name.
        start: First place of the explorer, if the chart follows one.
        strong: Name of the bar that stands out.
    """
    scale = {"domain": list(value.domain)} if value.domain else {}
    encoding: Part = {
        "x": along(value, title=value.title, scale=scale, stack=None),
        "y": {
            "field": name, "type": "nominal", "title": None, "sort": None,
            "axis": {"labelLimit": 220},
        },
        "tooltip": [
            tip(name, "nominal"),
            tip(value.key),
            *([tip(series, "nominal")] if series else []),
        ],
    }  # fmt: skip
    mark = {"type": "bar"}
    if series is not None:
        names = list(dict.fromkeys(row[series] for row in rows))
        encoding["color"] = colors(series, names)
        encoding["yOffset"] = {"field": series, "type": "nominal", "sort": names}
    elif strong is not None:
        test = f"datum['{name}'] == {json.dumps(strong)}"
        encoding["color"] = one_color(test, COLORS[0], FAINT)
    else:
        mark["color"] = COLORS[0]
    chart: Part = {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}
    if start is not None:
        chart |= {"params": [_explorer(start)], "transform": [_NOW]}
    count = len({(row[name], row[series] if series else "") for row in rows})
    return spec(chart, max(120, (11 if series else 20) * count + 20))


def scatter(
    rows: Rows,
    x: Axis,
    y: Axis,
    name: str,
    group: str,
    *,
    cross: tuple[float, float],
) -> dict[str, Any]:
    """Return named points, a shape and colour for each group, with two reference lines.

    Args:
        rows: Dictionaries of the points.
        x: Horizontal axis.
        y: Vertical axis.
        name: Key of the name, shown in the tooltip.
        group: Key of the group.
        cross: Places of the vertical and of the horizontal reference line.
    """
    groups = list(dict.fromkeys(row[group] for row in rows))
    points = {
        "mark": {"type": "point", "filled": True, "size": 90},
        "encoding": {
            "x": along(x, title=x.title),
            "y": along(y, title=y.title),
            "tooltip": [tip(name, "nominal"), tip(x.key), tip(y.key)],
            "color": colors(group, groups),
            "shape": shapes(group, groups),
        },
    }
    layers = [_rule(x, cross[0]), _rule(y, cross[1], "y"), points]
    return spec({"data": {"values": list(rows)}, "layer": layers}, 420)


def _rule(axis: Axis, at: float, direction: str = "x") -> Part:
    """Return a line across the chart at one place of an axis."""
    return {
        "data": {"values": [{axis.key: at}]},
        "mark": {"type": "rule", "color": INK, "strokeDash": [2, 3]},
        "encoding": {direction: along(axis)},
    }


def _explorer(start: int) -> Part:
    return {"name": "at", "value": start}
