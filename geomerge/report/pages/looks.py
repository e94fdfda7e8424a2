"""Colours, dashes, shapes and tooltips that all charts share.

Colours are CSS variables, so that one chart is right in light, dark and print; lines differ in
dashes and points in shape for those who see no colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "COLORS",
    "DASHES",
    "FAINT",
    "INK",
    "Rows",
    "colors",
    "legend",
    "looks",
    "shapes",
    "spec",
    "tip",
]

Rows = Sequence[dict[str, Any]]

COLORS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
# Of other lengths than the colours, so that no two of thirty series look alike.
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
    """Return a look for each name, in order, from the first again when they are used up."""
    import altair as alt

    return alt.Scale(domain=names, range=[known[k % len(known)] for k in range(len(names))])


def legend(names: list[str]) -> Any:
    """Return what all looks of a series share, so that they make one legend.

    Few short names stand beside each other; others below each other, for narrow screens.
    """
    import altair as alt

    beside = len(names) <= 3 and sum(map(len, names)) <= 45
    columns = len(names) if beside else 1
    return alt.Legend(orient="top", title=None, labelLimit=300, columns=columns)


def tip(key: str, kind: Any = "quantitative") -> Any:
    """Return what pointing at a mark shows of one key."""
    import altair as alt

    if kind == "quantitative":
        return alt.Tooltip(key, type=kind, format=".4~g")
    return alt.Tooltip(key, type=kind)


def spec(chart: Any, height: int) -> dict[str, Any]:
    """Return a chart's specification, as wide as the page leaves room for."""
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
    found: dict[str, Any] = chart.properties(width="container", height=height).to_dict()
    return {**found, "config": config}
