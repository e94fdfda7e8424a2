"""Axes, colours, dashes, shapes and tooltips shared by all charts, as parts of Vega-Lite.

Colours are CSS variables, so that one chart fits light, dark and print. Lines differ in dashes and
points in shape, for readers who see no colours. Specifications are plain dictionaries: a library
that builds and checks them took longer than all else on a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = [
    "COLORS",
    "FAINT",
    "INK",
    "Axis",
    "Part",
    "Rows",
    "along",
    "colors",
    "dashes",
    "one_color",
    "shapes",
    "spec",
    "tip",
]

Rows = Sequence[dict[str, Any]]
Part = dict[str, Any]


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


def along(axis: Axis, /, **more: Any) -> Part:
    """Return the encoding of an axis, without its title and its scale."""
    return {"field": axis.key, "type": "ordinal" if axis.ordinal else "quantitative", **more}


def colors(series: str, names: list[str]) -> Part:
    """Return a colour for each name of a series."""
    return _looks(series, names, COLORS)


def dashes(series: str, names: list[str]) -> Part:
    """Return the dashes of each name of a series."""
    return _looks(series, names, DASHES)


def shapes(series: str, names: list[str]) -> Part:
    """Return a shape for each name of a series."""
    return _looks(series, names, SHAPES)


def one_color(test: str, color: str, other: str) -> Part:
    """Return a colour where a test holds, and another one elsewhere."""
    return {"condition": {"test": test, "value": color}, "value": other}


def tip(key: str, kind: str = "quantitative") -> Part:
    """Return the tooltip of one key."""
    number = {"format": ".4~g"} if kind == "quantitative" else {}
    return {"field": key, "type": kind, **number}


def spec(chart: Part, height: int) -> Part:
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
    return {"width": "container", "height": height, **chart, "config": config}


def _looks(series: str, names: list[str], known: Sequence[Any]) -> Part:
    """Return one look for each name, in order; looks repeat when used up."""
    looks = {"domain": names, "range": [known[k % len(known)] for k in range(len(names))]}
    return {"field": series, "type": "nominal", "scale": looks, "legend": _legend(names)}


def _legend(names: list[str]) -> Part:
    """Return the legend shared by all looks of a series.

    Few short names stand in one row; others stand in one column, for narrow screens.
    """
    one_row = len(names) <= 3 and sum(map(len, names)) <= 45
    columns = len(names) if one_row else 1
    return {"orient": "top", "title": None, "labelLimit": 300, "columns": columns}
