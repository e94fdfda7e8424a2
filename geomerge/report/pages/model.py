"""What a page is made of: sections of figures, tables and numbers, with no word of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Explorer", "Figure", "Number", "Page", "Picture", "Section", "Table"]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        headings: Of the columns.
        rows: Cells as they are read; the first of each row heads it.
        strong: First cells of the rows that stand out.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A chart, with the table that holds its numbers.

    Attributes:
        title: Above it.
        about: What it shows and how to read it, a sentence or two; read aloud instead of it too.
        chart: A Vega-Lite specification. One with a parameter ``at`` follows the explorer.
        table: The numbers.
    """

    title: str
    about: str
    chart: dict[str, Any]
    table: Table


@dataclass(frozen=True)
class Picture:
    """An image of the run's folder.

    Attributes:
        file: Its name there.
        caption: What it shows; read aloud too.
        large: Whether it has the width of the page.
    """

    file: str
    caption: str
    large: bool = False


@dataclass(frozen=True)
class Explorer:
    """A row of points to move along; charts with a parameter ``at`` follow.

    Attributes:
        label: What moving changes.
        names: Of the points, as they are read.
        start: Where it stands at first.
        columns: Headings of the numbers shown for a point.
        rows: A heading and, for each point, the cells of the row.
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
        value: As it is read.
        label: What it is.
        detail: More about it.
    """

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        parts: Paragraphs (text), figures, tables, pictures and at most one explorer, in order.
        code: Lines to copy.
    """

    title: str
    parts: Sequence[str | Figure | Table | Picture | Explorer] = ()
    code: str = ""


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        kind: What made the run: ``"merge"``, ``"sparsify"``, ...
        title: What it was made of.
        numbers: The most important ones.
        verdict: Better or worse than what, in sentences.
        first: The figure of the first screen; None where there is nothing to draw.
        sections: The rest.
        notes: Sentences of the first screen on what was assumed or could not be done.
    """

    kind: str
    title: str
    numbers: Sequence[Number]
    verdict: Sequence[str]
    first: Figure | None
    sections: Sequence[Section] = field(default_factory=tuple)
    notes: Sequence[str] = ()
