"""``geomerge evaluate``: the accuracy of a network on tasks."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from geomerge.cli.console import percent
from geomerge.cli.options import (
    Arch,
    DataRoot,
    Device,
    Download,
    Json,
    NetworkFile,
    Normalisations,
)

__all__ = ["evaluate"]


def evaluate(
    network: NetworkFile,
    manifold: Annotated[list[str], typer.Option(help="Task to measure; may be given again.")],
    split: Annotated[str, typer.Option(help="test or select.")] = "test",
    arch: Arch = None,
    normalisation: Normalisations = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Measure a network's accuracy on tasks."""
    from geomerge.evaluation.files import evaluate_file

    found = evaluate_file(
        network,
        manifold,
        split=split,
        arch=arch,
        normalisation=normalisation or (),
        data_root=data_root,
        download=download,
        device=device,
    )
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if found["architecture"] is None:
        assumed = ", ReLU assumed between layers" if found["recognised"] == "mlp" else ""
        print(f"note: recognised by its weights as a {found['recognised']}{assumed}")
    if found["head"] != "shared":
        print(f"note: {found['head']} head, classes of each task where the merge put them")
    for row in found["tasks"]:
        print(
            f"{row['task']}: {percent(row['accuracy'])} % of {row['examples']} "
            f"{row['split']} examples"
        )
