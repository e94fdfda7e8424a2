"""A page -> one HTML file that needs nothing else."""

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
        page: The page.
        folder: The run's folder, for its pictures.

    Raises:
        RunError: If a picture is not there.
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

    def part(found: Any) -> tuple[str, Any]:
        kind = type(found).__name__
        if isinstance(found, Figure):
            return kind, named(found)
        if isinstance(found, Picture):
            return kind, {**asdict(found), "source": _source(folder, found.file)}
        return kind, found

    first = None if page.first is None else named(page.first)
    sections = [
        {"title": s.title, "parts": [part(p) for p in s.parts], "code": s.code}
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
    """Return a picture of a run as a data address.

    Raises:
        RunError: If it is not there, or no picture.
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
    """Return Vega, Vega-Lite and Vega-Embed as one script without any address to fetch from."""
    import vl_convert

    everything: Any = None  # the three libraries, as its documentation says
    script = vl_convert.javascript_bundle(everything)
    return script.replace("</script", "<\\/script")


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
