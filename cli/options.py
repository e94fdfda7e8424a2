"""Options of several commands that the library does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.console import LOG_JSON

__all__ = [
    "Force",
    "Json",
    "LogJson",
    "NetworkFile",
    "NetworkOut",
    "Normalisation",
    "ReportJson",
]

NetworkFile = Annotated[
    Path,
    typer.Argument(help="the network: a .pt, .pth or .safetensors file, or a Hugging Face folder"),
]
NetworkOut = Annotated[
    Path,
    typer.Option(help="file of the network: .pt or .safetensors", rich_help_panel="output"),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="replacement of a file that exists", rich_help_panel="output"),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, printed", rich_help_panel="output")]
ReportJson = Annotated[
    bool, typer.Option("--json", help="report.json, printed", rich_help_panel="output")
]
LogJson = Annotated[
    bool,
    typer.Option(
        LOG_JSON,
        help="events on the error stream, one JSON object a line",
        rich_help_panel="output",
    ),
]
Normalisation = Annotated[
    str | None,
    typer.Option(help="MEAN/STD instead of the usual normalisation", rich_help_panel="data"),
]
