"""Heat maps, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

from typing import Any

from geomerge.report.pages.looks import COLORS, INK, Axis, Rows, spec, tip

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
    import altair as alt

    across: Any = _kind(x)
    up: Any = _kind(y)
    plain = alt.Axis(grid=False)
    cells = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X(x.key, type=across, title=x.title, sort=None, scale=_tight(x), axis=plain),
        y=alt.Y(y.key, type=up, title=y.title, sort=None, scale=_tight(y), axis=plain),
        tooltip=[tip(x.key, across), tip(y.key, up), tip(value.key)],
    )
    if not x.ordinal:
        cells = cells.encode(x2="x2:Q", y2="y2:Q")
    # One ink with several opacities fits light and dark grounds, and print.
    strength = alt.FillOpacity(
        value.key, type="quantitative", title=value.title, scale=alt.Scale(range=[0.03, 0.8])
    )
    layers: list[Any] = [cells.mark_rect(fill=INK).encode(fillOpacity=strength)]
    if numbers:
        values = [row[value.key] for row in rows]
        dark = min(values) + _DARK * (max(values) - min(values))
        color = alt.condition(
            f"datum['{value.key}'] > {dark}", alt.value("var(--ground)"), alt.value(INK)
        )
        text = alt.Text(value.key, type="quantitative", format=".0f")
        layers.append(cells.mark_text().encode(text=text, color=color))
    if track:
        line = alt.Chart(alt.Data(values=list(track))).encode(
            x=alt.X(x.key, type=across),
            y=alt.Y(y.key, type=up),
            order=alt.Order("i", type="quantitative"),
        )
        layers.append(line.mark_line(color=COLORS[0], point={"color": COLORS[0], "size": 22}))
    if marks:
        spots = alt.Chart(alt.Data(values=list(marks))).encode(
            x=alt.X(x.key, type=across), y=alt.Y(y.key, type=up)
        )
        layers.append(
            spots.mark_point(
                filled=True, size=120, fill="var(--ground)", stroke=INK, strokeWidth=1.5, opacity=1
            )
        )
        middle = (min(row[x.key] for row in rows) + max(row[x.key] for row in rows)) / 2
        for left, side in ((True, "<="), (False, ">")):  # so that names stay within the picture
            names = spots.transform_filter(f"datum['{x.key}'] {side} {middle}").mark_text(
                dx=10 if left else -10, dy=-8, align="left" if left else "right", color=INK
            )
            layers.append(names.encode(text=alt.Text("name", type="nominal")))
    places = len({row[y.key] for row in rows})
    return spec(alt.layer(*layers), max(_LEAST, _ROW * places) if y.ordinal else _HEIGHT)


def _kind(axis: Axis) -> str:
    return "ordinal" if axis.ordinal else "quantitative"


def _tight(axis: Axis) -> Any:
    import altair as alt

    return alt.Undefined if axis.ordinal else alt.Scale(nice=False, zero=False)
