"""Options that several commands share, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Arch",
    "DataRoot",
    "Device",
    "Download",
    "Json",
    "NetworkFile",
    "NetworkOut",
    "Normalisation",
    "Normalisations",
    "Output",
]

Arch = Annotated[str | None, typer.Option(help="Architecture, where the file does not say.")]
DataRoot = Annotated[
    str | None, typer.Option(help="Folder of data sets; default GEOMERGE_DATA, else ./data.")
]
Device = Annotated[str, typer.Option(help="Where to compute.")]
Download = Annotated[
    bool, typer.Option("--download", help="Let torchvision fetch a missing data set.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NetworkFile = Annotated[Path, typer.Argument(help="The network: .pt, .pth or .safetensors.")]
NetworkOut = Annotated[Path, typer.Option(help="Where the network goes: .pt or .safetensors.")]
Normalisation = Annotated[str | None, typer.Option(help="MEAN/STD instead of the usual one.")]
Normalisations = Annotated[
    list[str] | None, typer.Option(help="TASK=MEAN/STD instead of the usual one.")
]
Output = Annotated[
    str, typer.Option(help="What the metric measures: hellinger, tempered, logits or softmax.")
]
