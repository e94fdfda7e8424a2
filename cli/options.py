"""Options that several commands have beside those of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.console import LOG_JSON

__all__ = [
    "Arch",
    "DataRoot",
    "Device",
    "Download",
    "Force",
    "Json",
    "LogJson",
    "NetworkFile",
    "NetworkOut",
    "Normalisation",
    "Normalisations",
    "Output",
    "Points",
    "ReportJson",
    "Seed",
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
Arch = Annotated[str | None, typer.Option(help="Architecture, where the file does not say.")]
Normalisations = Annotated[
    list[str] | None, typer.Option(help="TASK=MEAN/STD instead of the usual one.")
]
DataRoot = Annotated[
    str | None, typer.Option(help="Folder of data sets; default GEOMERGE_DATA, else ./data.")
]
Device = Annotated[str, typer.Option(help="Where to compute.")]
Download = Annotated[
    bool, typer.Option("--download", help="Let torchvision fetch a missing data set.")
]

# What is measured, kept and drawn.
Output = Annotated[
    str, typer.Option(help="What the metric measures: hellinger, tempered, logits or softmax.")
]
Points = Annotated[int, typer.Option(help="Most networks stored on a path.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn.")]
