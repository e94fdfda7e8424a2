"""Line, bar and scatter charts, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

import json
from typing import Any

from geomerge.report.pages.looks import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    Axis,
    Rows,
    colors,
    legend,
    looks,
    shapes,
    spec,
    tip,
)

__all__ = ["bars", "lines", "scatter"]


_HEIGHT = 300  # pixels of a line chart


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
    import altair as alt

    names = list(dict.fromkeys(row[series] for row in rows))
    scale: dict[str, Any] = {"zero": False} if y.domain is None else {"domain": list(y.domain)}
    scale = {"type": "log"} if y.log else scale
    places = [row[x.key] for row in rows]
    whole = alt.Axis(tickMinStep=1) if all(isinstance(v, int) for v in places) else alt.Axis()
    place = alt.X(
        x.key, type="quantitative", title=x.title, scale=alt.Scale(nice=False), axis=whole
    )
    value = alt.Y(y.key, type="quantitative", title=y.title, scale=alt.Scale(**scale))
    known = alt.Chart(alt.Data(values=list(rows))).transform_filter(f"isValid(datum['{y.key}'])")
    encoded = known.encode(
        x=place,
        y=value,
        color=colors(series, names),
        tooltip=[tip(series, "nominal"), tip(x.key), tip(y.key)],
    )
    dashes = alt.StrokeDash(
        series, type="nominal", scale=looks(names, DASHES), legend=legend(names)
    )
    order = alt.Order("i" if "i" in rows[0] else x.key, type="quantitative")
    layers: list[Any] = [
        encoded.mark_line().encode(strokeDash=dashes, order=order),
        encoded.mark_point(filled=True, size=28).encode(shape=shapes(series, names)),
    ]
    if mark is not None:
        at, text = mark
        here = alt.Chart(alt.Data(values=[{x.key: at}])).encode(x=alt.X(x.key, type="quantitative"))
        layers.append(here.mark_rule(color=INK, strokeDash=[2, 3]))
        if text:
            left = at > (min(places) + max(places)) / 2
            layers.append(
                here.mark_text(
                    text=text,
                    align="right" if left else "left",
                    dx=-6 if left else 6,
                    y="height",
                    dy=-8,
                    color=INK,
                )
            )
    if start is not None:
        explorer = alt.param(name="at", value=start)
        now = known.transform_filter("datum.i == at").encode(x=place)
        layers.append(now.mark_rule(color=FAINT, strokeWidth=1.5))
        layers.append(now.encode(y=value).mark_point(size=160, strokeWidth=2, color=INK))
        return spec(alt.layer(*layers).add_params(explorer), _HEIGHT)
    return spec(alt.layer(*layers), _HEIGHT)


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
    import altair as alt

    chart = alt.Chart(alt.Data(values=list(rows)))
    scale = alt.Scale(domain=list(value.domain)) if value.domain else alt.Scale()
    chart = chart.encode(
        x=alt.X(value.key, type="quantitative", title=value.title, scale=scale, stack=None),
        y=alt.Y(name, type="nominal", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
        tooltip=[
            tip(name, "nominal"),
            tip(value.key),
            *([tip(series, "nominal")] if series else []),
        ],
    )
    if series is not None:
        names = list(dict.fromkeys(row[series] for row in rows))
        chart = chart.encode(
            color=colors(series, names), yOffset=alt.YOffset(series, type="nominal", sort=names)
        )
    elif strong is not None:
        chart = chart.encode(
            color=alt.condition(
                f"datum['{name}'] == {json.dumps(strong)}", alt.value(COLORS[0]), alt.value(FAINT)
            )
        )
    if start is not None:
        chart = chart.add_params(alt.param(name="at", value=start))
        chart = chart.transform_filter("datum.i == at")
    count = len({(row[name], row[series] if series else "") for row in rows})
    bar = chart.mark_bar() if series or strong else chart.mark_bar(color=COLORS[0])
    return spec(bar, max(120, (11 if series else 20) * count + 20))


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
    import altair as alt

    groups = list(dict.fromkeys(row[group] for row in rows))
    chart = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X(x.key, type="quantitative", title=x.title),
        y=alt.Y(y.key, type="quantitative", title=y.title),
        tooltip=[tip(name, "nominal"), tip(x.key), tip(y.key)],
    )
    points = chart.mark_point(filled=True, size=90).encode(
        color=colors(group, groups), shape=shapes(group, groups)
    )
    upright, flat = (
        alt.Chart(alt.Data(values=[{axis.key: at}])).mark_rule(color=INK, strokeDash=[2, 3])
        for axis, at in zip((x, y), cross, strict=True)
    )
    layers = [
        upright.encode(x=alt.X(x.key, type="quantitative")),
        flat.encode(y=alt.Y(y.key, type="quantitative")),
        points,
    ]
    return spec(alt.layer(*layers), 420)
