"""Options of several commands without a counterpart in the library."""

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
    typer.Argument(help="network: a .pt, .pth or .safetensors file, or a Hugging Face folder"),
]
NetworkOut = Annotated[
    Path,
    typer.Option(help="file of the network: .pt or .safetensors", rich_help_panel="output"),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="replacement of an existing file", rich_help_panel="output"),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, printed", rich_help_panel="output")]
ReportJson = Annotated[
    bool,
    typer.Option(
        "--json", help="output of report.json instead of tables", rich_help_panel="output"
    ),
]
LogJson = Annotated[
    bool,
    typer.Option(
        LOG_JSON,
        help="events on standard error, one JSON object per line",
        rich_help_panel="output",
    ),
]
Normalisation = Annotated[
    str | None,
    typer.Option(help="MEAN/STD instead of the usual normalisation", rich_help_panel="data"),
]
