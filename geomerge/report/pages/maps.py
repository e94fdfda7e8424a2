"""Heat maps, as Vega-Lite specifications."""

from __future__ import annotations

from typing import Any

from geomerge.report.pages.looks import COLORS, INK, Axis, Part, Rows, along, one_color, spec, tip

__all__ = ["heat"]

_HEIGHT = 340  # pixels of a map of measured directions
_ROW, _LEAST = 30, 160  # pixels of a row of an ordinal map, and of the whole at least
_DARK = 0.55  # share of a map's range above which numbers are written in a light colour


def heat(
    rows: Rows,
    x: Axis,
    y: Axis,
    value: Axis,
    *,
    track: Rows = (),
    marks: Rows = (),
    numbers: bool = False,
) -> dict[str, Any]:
    """Return a heat map, with a track of points and marks on it.

    Args:
        rows: Dictionaries of the cells, with ``x2`` and ``y2`` unless the axes are ordinal.
        x: Horizontal axis.
        y: Vertical axis.
        value: Axis of the shade, darker where larger.
        track: Points of a line, with the same keys.
        marks: Places with a ``name``, with the same keys.
        numbers: Whether values are written into the cells.
    """
    cells: Part = {
        "x": _plain(x),
        "y": _plain(y),
        "tooltip": [tip(x.key, along(x)["type"]), tip(y.key, along(y)["type"]), tip(value.key)],
    }
    if not x.ordinal:
        cells |= {"x2": {"field": "x2"}, "y2": {"field": "y2"}}
    # One ink with several opacities fits light and dark grounds, and print.
    strength = along(value, title=value.title, scale={"range": [0.03, 0.8]})
    layers: list[Part] = [
        {"mark": {"type": "rect", "fill": INK}, "encoding": {**cells, "fillOpacity": strength}}
    ]
    if numbers:
        values = [row[value.key] for row in rows]
        dark = min(values) + _DARK * (max(values) - min(values))
        color = one_color(f"datum['{value.key}'] > {dark}", "var(--ground)", INK)
        written = {"text": along(value, format=".0f"), "color": color}
        layers.append({"mark": {"type": "text"}, "encoding": {**cells, **written}})
    place = {"x": along(x), "y": along(y)}
    if track:
        line = {"type": "line", "color": COLORS[0], "point": {"color": COLORS[0], "size": 22}}
        order = {"field": "i", "type": "quantitative"}
        layers.append(
            {
                "data": {"values": list(track)},
                "mark": line,
                "encoding": {**place, "order": order},
            }
        )
    if marks:
        spots = {"data": {"values": list(marks)}}
        disc = {
            "type": "point", "filled": True, "size": 120, "fill": "var(--ground)", "stroke": INK,
            "strokeWidth": 1.5, "opacity": 1,
        }  # fmt: skip
        layers.append({**spots, "mark": disc, "encoding": place})
        middle = (min(row[x.key] for row in rows) + max(row[x.key] for row in rows)) / 2
        name = {"field": "name", "type": "nominal"}
        for left, side in ((True, "<="), (False, ">")):  # so that names stay within the picture
            words = {
                "type": "text", "dx": 10 if left else -10, "dy": -8,
                "align": "left" if left else "right", "color": INK,
            }  # fmt: skip
            layers.append(
                {
                    **spots,
                    "transform": [{"filter": f"datum['{x.key}'] {side} {middle}"}],
                    "mark": words,
                    "encoding": {**place, "text": name},
                }
            )
    places = len({row[y.key] for row in rows})
    height = max(_LEAST, _ROW * places) if y.ordinal else _HEIGHT
    return spec({"data": {"values": list(rows)}, "layer": layers}, height)


def _plain(axis: Axis) -> Part:
    """Return the encoding of an axis without a grid, as long as what is on it."""
    tight = {} if axis.ordinal else {"scale": {"nice": False, "zero": False}}
    return along(axis, title=axis.title, sort=None, axis={"grid": False}, **tight)
