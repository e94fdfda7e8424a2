"""Parts of a page, without HTML: sections of figures, tables, pictures and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Explorer", "Figure", "Number", "Page", "Picture", "Section", "Table"]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: Caption of the table.
        headings: Headings of the columns.
        rows: Texts of the cells; the first of each row is its heading.
        strong: Headings of the rows that stand out.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A chart, with a table of its numbers.

    Attributes:
        title: Title of the chart.
        about: Explanation of one or two sentences, which screen readers read instead of the chart.
        chart: Vega-Lite specification. A chart with a parameter ``at`` follows the explorer.
        table: Table of the numbers.
    """

    title: str
    about: str
    chart: dict[str, Any]
    table: Table


@dataclass(frozen=True)
class Picture:
    """An image in the run's folder.

    Attributes:
        file: Name of the file, relative to the folder.
        caption: Caption, which screen readers read too.
        large: Whether it has the width of the page.
    """

    file: str
    caption: str
    large: bool = False


@dataclass(frozen=True)
class Explorer:
    """A slider over a row of points; charts with a parameter ``at`` follow it.

    Attributes:
        label: Label of the slider.
        names: Names of the points.
        start: Index of the first point shown.
        columns: Headings of the numbers shown for a point.
        rows: Rows of numbers: a heading and, for each point, the cells.
    """

    label: str
    names: Sequence[str]
    start: int
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Sequence[str]]]]


@dataclass(frozen=True)
class Number:
    """A number of the first screen.

    Attributes:
        value: Text of the number.
        label: Name of the number.
        detail: Text in small print.
    """

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Heading of the section.
        parts: Paragraphs (text), figures, tables, pictures and at most one explorer, in order.
        code: Lines of code to copy.
    """

    title: str
    parts: Sequence[str | Figure | Table | Picture | Explorer] = ()
    code: str = ""


@dataclass(frozen=True)
class Page:
    """The page of a run.

    Attributes:
        kind: Command of the run: ``"merge"``, ``"sparsify"``, ...
        title: Title of the page.
        numbers: Numbers of the first screen.
        verdict: Sentences that compare the result with other networks.
        first: Figure of the first screen; None for a page without one.
        sections: Sections below the first screen.
        notes: Sentences of the first screen on assumptions and omissions.
    """

    kind: str
    title: str
    numbers: Sequence[Number]
    verdict: Sequence[str]
    first: Figure | None
    sections: Sequence[Section] = field(default_factory=tuple)
    notes: Sequence[str] = ()
