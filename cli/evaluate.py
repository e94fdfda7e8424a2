"""``geomerge evaluate``: accuracies of a network."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from geomerge.cli.console import percent
from geomerge.cli.flags import Flags
from geomerge.cli.options import Json, NetworkFile
from geomerge.data import check_normalised, split_normalisations
from geomerge.errors import OptionError, did_you_mean
from geomerge.expert import Expert
from geomerge.io.checkpoint import load_checkpoint
from geomerge.loading import ExpertOptions
from geomerge.networks.architectures import recognise

__all__ = ["evaluate"]

SPLITS = ("test", "select")


def evaluate(
    network: NetworkFile,
    manifold: Annotated[
        list[str], typer.Option(help="task to measure; may be given several times")
    ],
    data: Annotated[ExpertOptions, Flags(without=("manifold",))],
    split: Annotated[str, typer.Option(metavar="[test|select]", help="split to measure")] = "test",
    as_json: Json = False,
) -> None:
    """Measure a network's accuracy on tasks."""
    if split not in SPLITS:
        raise OptionError(f"unknown split {split!r}{did_you_mean(split, SPLITS)}")
    normalisations = split_normalisations(data.normalisation)
    check_normalised(normalisations, manifold, "measured")
    checkpoint = load_checkpoint(network)
    expert = Expert.from_checkpoint(checkpoint, data.arch, sketch=False, device=data.device)
    rows: list[dict[str, Any]] = []
    for name in manifold:
        task = expert.load_task(name, normalisations.get(name), data.data_root, data.download)
        rows.append(
            {
                "task": name,
                "split": split,
                "examples": len(getattr(task, split).labels),
                "accuracy": expert.accuracy(split, task),
            }
        )
    report = {
        "file": network.name,
        "sha256": checkpoint.digest,
        "architecture": expert.meta.get("architecture"),
        "recognised": recognise(checkpoint.weights),
        "head": expert.meta.get("head", {}).get("protocol", "shared"),
        "tasks": rows,
    }
    if as_json:
        print(json.dumps(report, indent=1))
        return
    if report["architecture"] is None:
        assumed = ", ReLU assumed between layers" if report["recognised"] == "mlp" else ""
        print(f"note: recognised by its weights as a {report['recognised']}{assumed}")
    if report["head"] != "shared":
        print(f"note: {report['head']} head, classes of each task where the merge put them")
    for row in rows:
        print(f"{row['task']}: {percent(row['accuracy'])} % of {row['examples']} {split} examples")
