"""Heat maps, as Vega-Lite specifications made with Altair."""

from __future__ import annotations

from typing import Any

from geomerge.report.pages.looks import COLORS, INK, Rows, spec, tip

__all__ = ["heat"]

_DARK = 0.55  # share of a map's range above which numbers are written in a light colour


def heat(
    rows: Rows,
    x: str,
    y: str,
    value: str,
    *,
    titles: tuple[str, str, str],
    track: Rows = (),
    marks: Rows = (),
    numbers: bool = False,
    ordered: bool = False,
    height: int = 340,
) -> dict[str, Any]:
    """Return a heat map, with a track of points and marks on it.

    Args:
        rows: Dictionaries of the cells, with ``x2`` and ``y2`` unless ``ordered``.
        x: Key of the horizontal place.
        y: Key of the vertical place.
        value: Key of the value, darker where larger.
        titles: Titles of both axes and of the value.
        track: Points of a line, with the same keys.
        marks: Places with a ``name``, with the same keys.
        numbers: Whether values are written into the cells.
        ordered: Whether places are ordinal, not measured.
        height: Height in pixels.
    """
    import altair as alt

    kind: Any = "ordinal" if ordered else "quantitative"
    plain = alt.Axis(grid=False)
    cells = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X(x, type=kind, title=titles[0], sort=None, scale=_tight(ordered), axis=plain),
        y=alt.Y(y, type=kind, title=titles[1], sort=None, scale=_tight(ordered), axis=plain),
        tooltip=[tip(x, kind), tip(y, kind), tip(value)],
    )
    if not ordered:
        cells = cells.encode(x2="x2:Q", y2="y2:Q")
    # One ink with several opacities fits light and dark grounds, and print.
    strength = alt.FillOpacity(
        value, type="quantitative", title=titles[2], scale=alt.Scale(range=[0.03, 0.8])
    )
    layers: list[Any] = [cells.mark_rect(fill=INK).encode(fillOpacity=strength)]
    if numbers:
        values = [row[value] for row in rows]
        dark = min(values) + _DARK * (max(values) - min(values))
        color = alt.condition(
            f"datum['{value}'] > {dark}", alt.value("var(--ground)"), alt.value(INK)
        )
        text = alt.Text(value, type="quantitative", format=".0f")
        layers.append(cells.mark_text().encode(text=text, color=color))
    if track:
        way = alt.Chart(alt.Data(values=list(track))).encode(
            x=alt.X(x, type=kind), y=alt.Y(y, type=kind), order=alt.Order("i", type="quantitative")
        )
        layers.append(way.mark_line(color=COLORS[0], point={"color": COLORS[0], "size": 22}))
    if marks:
        spots = alt.Chart(alt.Data(values=list(marks))).encode(
            x=alt.X(x, type=kind), y=alt.Y(y, type=kind)
        )
        layers.append(
            spots.mark_point(
                filled=True, size=120, fill="var(--ground)", stroke=INK, strokeWidth=1.5, opacity=1
            )
        )
        middle = (min(row[x] for row in rows) + max(row[x] for row in rows)) / 2
        for left, side in ((True, "<="), (False, ">")):  # so that names stay within the picture
            text = spots.transform_filter(f"datum['{x}'] {side} {middle}").mark_text(
                dx=10 if left else -10, dy=-8, align="left" if left else "right", color=INK
            )
            layers.append(text.encode(text=alt.Text("name", type="nominal")))
    return spec(alt.layer(*layers), height)


def _tight(ordered: bool) -> Any:
    import altair as alt

    return alt.Undefined if ordered else alt.Scale(nice=False, zero=False)
