"""Colours, dashes, shapes and tooltips shared by all charts.

Colours are CSS variables, so that one chart fits light, dark and print. Lines differ in dashes and
points in shape, for readers who see no colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = [
    "COLORS",
    "DASHES",
    "FAINT",
    "INK",
    "Axis",
    "Rows",
    "colors",
    "legend",
    "looks",
    "shapes",
    "spec",
    "tip",
]

Rows = Sequence[dict[str, Any]]


class Axis(NamedTuple):
    """A direction of a chart: horizontal, vertical, or the shade of a map.

    Attributes:
        key: Key of the values in the rows.
        title: Title of the axis.
        domain: Lowest and highest value; None takes those of the rows.
        log: Whether the scale is logarithmic.
        ordinal: Whether values are places in an order, not measured.
    """

    key: str
    title: str
    domain: tuple[float, float] | None = None
    log: bool = False
    ordinal: bool = False


COLORS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
# Five dashes and seven shapes with six colours: no two of thirty series look alike.
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left")
INK, FAINT = "var(--ink)", "var(--faint)"


def colors(series: str, names: list[str]) -> Any:
    """Return a colour for each name of a series."""
    import altair as alt

    return alt.Color(series, type="nominal", scale=looks(names, COLORS), legend=legend(names))


def shapes(series: str, names: list[str]) -> Any:
    """Return a shape for each name of a series."""
    import altair as alt

    return alt.Shape(series, type="nominal", scale=looks(names, SHAPES), legend=legend(names))


def looks(names: list[str], known: Sequence[Any]) -> Any:
    """Return a scale with one look for each name, in order; looks repeat when used up."""
    import altair as alt

    return alt.Scale(domain=names, range=[known[k % len(known)] for k in range(len(names))])


def legend(names: list[str]) -> Any:
    """Return the legend shared by all looks of a series.

    Few short names stand in one row; others stand in one column, for narrow screens.
    """
    import altair as alt

    one_row = len(names) <= 3 and sum(map(len, names)) <= 45
    columns = len(names) if one_row else 1
    return alt.Legend(orient="top", title=None, labelLimit=300, columns=columns)


def tip(key: str, kind: Any = "quantitative") -> Any:
    """Return the tooltip of one key."""
    import altair as alt

    if kind == "quantitative":
        return alt.Tooltip(key, type=kind, format=".4~g")
    return alt.Tooltip(key, type=kind)


def spec(chart: Any, height: int) -> dict[str, Any]:
    """Return a chart's specification, with the width of its place on the page."""
    quiet = {"domainColor": FAINT, "tickColor": FAINT, "gridColor": "var(--grid)"}
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
    config = {
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {**quiet, **text, "titleFontWeight": "normal"},
        "legend": {**text, "symbolStrokeWidth": 2},
        "text": {"fontSize": 12},
        "font": "system-ui, sans-serif",
    }
    specification: dict[str, Any] = chart.properties(width="container", height=height).to_dict()
    return {**specification, "config": config}
