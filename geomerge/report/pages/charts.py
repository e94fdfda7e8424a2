"""Line, bar and scatter charts, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

import json
from typing import Any

from geomerge.report.pages.looks import (
    COLORS,
    DASHES,
    FAINT,
    INK,
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
    x: str,
    y: str,
    series: str,
    *,
    titles: tuple[str, str],
    marked: float | None = None,
    marked_as: str = "",
    start: int | None = None,
    log: bool = False,
    domain: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return lines through points, one for each series.

    Args:
        rows: Dictionaries of the points; with ``start`` each has its number ``i``.
        x: Key of the horizontal place.
        y: Key of the value.
        series: Key of the series' name.
        titles: Titles of the axes.
        marked: Place of a vertical line.
        marked_as: Text next to that line.
        start: First place of the explorer, if the chart follows one.
        log: Whether values are on a logarithmic scale.
        domain: Lowest and highest value of the axis.
    """
    import altair as alt

    names = list(dict.fromkeys(row[series] for row in rows))
    scale = {"type": "log"} if log else {"domain": list(domain)} if domain else {"zero": False}
    whole = alt.Axis(tickMinStep=1) if all(isinstance(row[x], int) for row in rows) else alt.Axis()
    place = alt.X(x, type="quantitative", title=titles[0], scale=alt.Scale(nice=False), axis=whole)
    value = alt.Y(y, type="quantitative", title=titles[1], scale=alt.Scale(**scale))
    known = alt.Chart(alt.Data(values=list(rows))).transform_filter(f"isValid(datum['{y}'])")
    encoded = known.encode(
        x=place,
        y=value,
        color=colors(series, names),
        tooltip=[tip(series, "nominal"), tip(x), tip(y)],
    )
    dashes = alt.StrokeDash(
        series, type="nominal", scale=looks(names, DASHES), legend=legend(names)
    )
    order = alt.Order("i" if "i" in rows[0] else x, type="quantitative")
    layers: list[Any] = [
        encoded.mark_line().encode(strokeDash=dashes, order=order),
        encoded.mark_point(filled=True, size=28).encode(shape=shapes(series, names)),
    ]
    if marked is not None:
        here = alt.Chart(alt.Data(values=[{x: marked}])).encode(x=alt.X(x, type="quantitative"))
        layers.append(here.mark_rule(color=INK, strokeDash=[2, 3]))
        if marked_as:
            left = marked > (min(row[x] for row in rows) + max(row[x] for row in rows)) / 2
            layers.append(
                here.mark_text(
                    text=marked_as,
                    align="right" if left else "left",
                    dx=-6 if left else 6,
                    y="height",
                    dy=-8,
                    color=INK,
                )
            )
    if start is not None:
        at = alt.param(name="at", value=start)
        now = known.transform_filter("datum.i == at").encode(x=place)
        layers.append(now.mark_rule(color=FAINT, strokeWidth=1.5))
        layers.append(now.encode(y=value).mark_point(size=160, strokeWidth=2, color=INK))
        return spec(alt.layer(*layers).add_params(at), _HEIGHT)
    return spec(alt.layer(*layers), _HEIGHT)


def bars(
    rows: Rows,
    name: str,
    value: str,
    *,
    title: str,
    series: str | None = None,
    start: int | None = None,
    domain: tuple[float, float] | None = None,
    strong: str | None = None,
) -> dict[str, Any]:
    """Return horizontal bars, in the order of the rows, grouped by name if there is a series.

    Args:
        rows: Dictionaries of the bars; with ``start`` each has its point's number ``i``.
        name: Key of the name.
        value: Key of the length.
        title: Title of the axis of lengths.
        series: Key of the series' name.
        start: First place of the explorer, if the chart follows one.
        domain: Lowest and highest length of the axis.
        strong: Name of the bar that stands out.
    """
    import altair as alt

    chart = alt.Chart(alt.Data(values=list(rows)))
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale()
    chart = chart.encode(
        x=alt.X(value, type="quantitative", title=title, scale=scale, stack=None),
        y=alt.Y(name, type="nominal", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
        tooltip=[
            tip(name, "nominal"),
            tip(value),
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
    x: str,
    y: str,
    name: str,
    group: str,
    *,
    titles: tuple[str, str],
    cross: tuple[float, float],
) -> dict[str, Any]:
    """Return named points, a shape and colour for each group, with two reference lines.

    Args:
        rows: Dictionaries of the points.
        x: Key of the horizontal value.
        y: Key of the vertical value.
        name: Key of the name, shown in the tooltip.
        group: Key of the group.
        titles: Titles of the axes.
        cross: Places of the vertical and of the horizontal reference line.
    """
    import altair as alt

    groups = list(dict.fromkeys(row[group] for row in rows))
    chart = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X(x, type="quantitative", title=titles[0]),
        y=alt.Y(y, type="quantitative", title=titles[1]),
        tooltip=[tip(name, "nominal"), tip(x), tip(y)],
    )
    points = chart.mark_point(filled=True, size=90).encode(
        color=colors(group, groups), shape=shapes(group, groups)
    )
    vertical = alt.Chart(alt.Data(values=[{x: cross[0]}])).mark_rule(color=INK, strokeDash=[2, 3])
    flat = alt.Chart(alt.Data(values=[{y: cross[1]}])).mark_rule(color=INK, strokeDash=[2, 3])
    layers = [
        vertical.encode(x=alt.X(x, type="quantitative")),
        flat.encode(y=alt.Y(y, type="quantitative")),
        points,
    ]
    return spec(alt.layer(*layers), 420)
