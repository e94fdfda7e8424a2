"""HTML of a page: one file with all styles, scripts and pictures inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import geomerge
from geomerge.errors import RunError
from geomerge.io.files import plain_file, read_regular
from geomerge.report.content import EXAMPLES
from geomerge.report.pages.model import Explorer, Figure, Page, Picture

__all__ = ["render"]

_ASSETS = Path(__file__).parent / "assets"
_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def render(page: Page, folder: Path) -> str:
    """Return the page as HTML, with all its pictures, charts and scripts inside.

    Args:
        page: Page to render.
        folder: Folder of the run, for its pictures.

    Raises:
        RunError: If a picture is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts: dict[str, Any] = {}

    def named(figure: Figure) -> dict[str, Any]:
        name = f"chart-{len(charts)}"
        charts[name] = _plain({**figure.chart, "description": f"{figure.title}. {figure.about}"})
        return {"id": name, "title": figure.title, "about": figure.about, "table": figure.table}

    def with_kind(part: Any) -> tuple[str, Any]:
        kind = type(part).__name__
        if isinstance(part, Figure):
            return kind, named(part)
        if isinstance(part, Picture):
            return kind, {**asdict(part), "source": _source(folder, part.file)}
        return kind, part

    first = None if page.first is None else named(page.first)
    sections = [
        {"title": s.title, "parts": [with_kind(part) for part in s.parts], "code": s.code}
        for s in page.sections
    ]
    explorer = next(_explorers(page), None)
    return environment.get_template("page.html.j2").render(
        page=page,
        first=first,
        sections=sections,
        charts=charts,
        points={
            "names": list(explorer.names) if explorer else [],
            "rows": [cells for _, cells in explorer.rows] if explorer else [],
        },
        version=geomerge.__version__,
        css=Markup((_ASSETS / "page.css").read_text(encoding="utf-8")),
        script=Markup((_ASSETS / "page.js").read_text(encoding="utf-8")),
        library=Markup(_library()),
    )


def _explorers(page: Page) -> Iterator[Explorer]:
    for section in page.sections:
        yield from (part for part in section.parts if isinstance(part, Explorer))


def _source(folder: Path, name: str) -> str:
    """Return a picture of a run as a data URL.

    Raises:
        RunError: If it is missing, or no picture.
    """
    within, _, own = str(name).rpartition("/")
    try:
        if within not in ("", EXAMPLES):
            raise ValueError(f"{within} holds no pictures")
        file = plain_file(folder / within, own)
        content = read_regular(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} lacks its picture {name}; make the run again") from error
    return f"data:{_TYPES[file.suffix]};base64,{base64.b64encode(content).decode()}"


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that fetches nothing."""
    import vl_convert

    everything: Any = None  # the three libraries, as its documentation says
    script = vl_convert.javascript_bundle(everything)
    return script.replace("</script", "<\\/script")


def _plain(value: Any) -> Any:
    """Return a value in which numbers that are not finite are None, as JSON needs it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
