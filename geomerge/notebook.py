"""HTML for notebooks: tables and line drawings without external resources.

Text takes the notebook's own colour, so that dark and light ones can both be read. Whatever is
given as text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Curve", "Dot", "card", "drawing", "ruler", "sentences", "table"]

# Bright enough on black and dark enough on white; lines differ in their dashes for print in grey.
_STROKES = (("#3b8bd0", ""), ("#e0702a", "7 4"), ("#2aa57c", "7 3 2 3"), ("#c865a6", "2 3"))
_FAINT = 'stroke="currentColor" stroke-opacity="0.25"'
_TICK = 'stroke="currentColor" stroke-opacity="0.6"'
_SIDE, _HIGH = 300, 150  # pixels of a drawing's frame
_LEFT, _TOP, _BELOW = 46, 22, 44
_LINE = 17  # pixels from one line of a legend to the next


class Curve(NamedTuple):
    """A line of a drawing: its name, and points in the unit square."""

    name: str
    points: Sequence[tuple[float, float]]


class Dot(NamedTuple):
    """A point of a drawing, in the unit square; its name shows under the mouse."""

    name: str
    x: float
    y: float


def card(title: str, *parts: str) -> str:
    """Return a title and HTML under it.

    Args:
        title: Text.
        parts: HTML, made by the other functions of this module.
    """
    return f"<div><p><strong>{escape(title)}</strong></p>{''.join(parts)}</div>"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table.

    Args:
        headings: Text of each column.
        rows: Text of each cell; the first column names the row.
    """
    head = _row("th", headings)
    body = "".join(_row("td", row) for row in rows)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def sentences(texts: Sequence[str]) -> str:
    """Return sentences as a list, nothing where there are none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def drawing(
    curves: Sequence[Curve],
    across: str,
    up: str,
    *,
    mark: tuple[str, float] | None = None,
    dots: Sequence[Dot] = (),
) -> str:
    """Return lines and points in the unit square as inline SVG.

    Of the vertical axis only the tenths from the lowest point on are drawn.

    Args:
        curves: The lines.
        across: Title of the horizontal axis, from 0 to 1.
        up: Title of the vertical axis, up to 1.
        mark: Name and place of a vertical dotted line.
        dots: The points.
    """
    heights = [y for curve in curves for _, y in curve.points] + [dot.y for dot in dots]
    low = min(math.floor(10 * min(heights, default=0.0)) / 10, 0.9)
    legend = _TOP + _HIGH + _BELOW

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + _SIDE * x, _TOP + _HIGH * (1 - y) / (1 - low)

    parts = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_HIGH}" fill="none" {_FAINT}/>'
    ]
    for share in (0.0, 0.5, 1.0):
        x, y = place(share, low + share * (1 - low))
        parts.append(_text(x, _TOP + _HIGH + 13, f"{share:g}", "middle"))
        parts.append(_text(_LEFT - 5, y + 4, f"{low + share * (1 - low):g}", "end"))
    parts.append(_text(_LEFT + _SIDE / 2, _TOP + _HIGH + 28, across, "middle"))
    parts.append(_text(_LEFT, _TOP - 8, up))
    if mark is not None:
        x, _ = place(mark[1], 1)
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _HIGH}" '
            'stroke="currentColor" stroke-dasharray="2 3"/>'
        )
        side, anchor = (-4, "end") if mark[1] > 0.5 else (4, "start")
        parts.append(_text(x + side, _TOP + _HIGH - 6, mark[0], anchor))
    for k, curve in enumerate(curves):
        style = _style(k)
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in curve.points))
        parts.append(f'<polyline points="{places}" fill="none" {style}/>')
        y = legend + _LINE * k
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + 28}" y2="{y}" {style}/>')
        parts.append(_text(_LEFT + 34, y + 4, curve.name))
    for dot in dots:
        x, y = place(dot.x, dot.y)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="currentColor" fill-opacity="0.7">'
            f"<title>{escape(dot.name)}</title></circle>"
        )
    return _svg(parts, _LEFT + _SIDE + 20, legend + _LINE * len(curves))


def ruler(ends: tuple[str, str], places: Sequence[float], mark: tuple[str, float]) -> str:
    """Return a line from one end to another with points on it, as inline SVG.

    Args:
        ends: Names of the ends.
        places: Positions of the points, from 0 to 1.
        mark: Name and place of one that stands out.
    """
    left, right, y = 20, 20 + _SIDE, 34
    parts = [f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="currentColor"/>']
    for place in places:
        x = left + _SIDE * place
        parts.append(f'<line x1="{x:.1f}" y1="{y - 4}" x2="{x:.1f}" y2="{y + 4}" {_TICK}/>')
    x = left + _SIDE * mark[1]
    parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{_STROKES[1][0]}"/>')
    parts.append(_text(x, y - 12, mark[0], "middle"))
    parts.append(_text(left, y + 20, ends[0], "middle"))
    parts.append(_text(right, y + 20, ends[1], "middle"))
    return _svg(parts, right + 60, y + 30)


def _row(tag: str, cells: Sequence[str]) -> str:
    inside = "".join(f'<{tag} style="text-align:left">{escape(c)}</{tag}>' for c in cells)
    return f"<tr>{inside}</tr>"


def _style(k: int) -> str:
    color, dashes = _STROKES[k % len(_STROKES)]
    return f'stroke="{color}" stroke-width="2" stroke-dasharray="{dashes or "none"}"'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" '
        f'fill="currentColor">{escape(text)}</text>'
    )


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif">{"".join(parts)}</svg>'
    )
