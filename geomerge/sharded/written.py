"""Written folder of a sharded merge: the merged network, or one for each head, and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from geomerge.errors import first_few
from geomerge.io.files import write_bytes
from geomerge.io.precision import in_precision
from geomerge.merging.model_folders import distinct_names
from geomerge.networks.hugging_face import CONFIG, copy_other_files
from geomerge.options import recorded
from geomerge.sharded.checkpoint import save_model
from geomerge.sharded.checkpointed_walk import CheckpointedWalk
from geomerge.sharded.data import data_notes
from geomerge.sharded.experts import Experts
from geomerge.sharded.network import ShardedNetwork
from geomerge.sharded.options import ShardedOptions

__all__ = ["REPORT", "WORK", "merge_report", "round_weights", "write_merged"]

REPORT = "merge.json"
WORK = "work"  # folder of the state that a merge is resumed from


def round_weights(network: ShardedNetwork, dtype: str) -> None:
    """Round a network's shards to what files of a type hold.

    Args:
        network: Network.
        dtype: Name of the type.

    Raises:
        OptionError: If a number is too large for the type, in every process.
    """
    shards = {name: network.shard(name) for name in network.shapes}
    largest = [one.abs().max() if one.numel() else one.new_zeros(()) for one in shards.values()]
    of_all = network.mates.all_rows(torch.stack(largest).unsqueeze(0)).amax(dim=0)
    in_precision(dict(zip(shards, of_all, strict=True)), dtype)
    for name, shard in shards.items():
        shard.copy_(in_precision({name: shard}, dtype)[name])


def merge_report(
    experts: Experts, walk: CheckpointedWalk, options: ShardedOptions, held: Sequence[str]
) -> dict[str, Any]:
    """Return the content of ``merge.json``; the test splits are measured at the picked point.

    Args:
        experts: Networks and the merged one.
        walk: Walk, at its picked point.
        options: Options of the merge.
        held: Names of the weights that have no metric and did not move.
    """
    sources = experts.sources
    return {
        "networks": {
            k: {"folder": str(folder), "task": experts.data[k].name, **experts.scores.get(k, {})}
            for k, folder in sources.folders.items()
        },
        "head": sources.head,
        "own_layers": sources.own,
        "options": recorded(options),
        "points": walk.points,
        "rule": None if walk.rule is None else walk.rule.name,
        "picked": walk.picked,
        "test": experts.accuracies("test"),
        "notes": _notes(experts, walk, held),
        "processes": experts.network.mates.size,
    }


def _notes(experts: Experts, walk: CheckpointedWalk, held: Sequence[str]) -> list[str]:
    notes = data_notes(experts.sources, experts.data)
    if held:
        notes.append(
            f"{first_few(held)} have no form of the metric here, and stay at the mean of all "
            "networks"
        )
    if experts.unlabelled:
        blind = " and ".join(experts.unlabelled)
        notes.append(f"there are no labels for {blind}: the last point of the walk is taken")
    if experts.sources.own:
        own = ", ".join(experts.sources.own)
        notes.append(f"each network keeps layers of its own: {own}")
    unmet = walk.note()
    return notes if unmet is None else [*notes, unmet]


def write_merged(folder: Path, experts: Experts, report: dict[str, Any], dtype: str) -> None:
    """Write the network as a model folder, or one for each head, and the report.

    Args:
        folder: Folder of the merge.
        experts: Networks and the merged one, at its picked point.
        report: Content of ``merge.json``.
        dtype: Name of the type of the weights.

    Raises:
        RunError: If a process cannot write, in every process.
    """
    sources, network, mates = experts.sources, experts.network, experts.network.mates
    places = distinct_names(sources.folders, {WORK}) if sources.own else {"a": ""}
    for name, own in places.items():
        tensors = {}
        for parameter in network.shapes:
            stored = sources.stored_name(parameter, name)
            if stored is not None:
                tensors[stored] = network.whole(parameter).to(getattr(torch, dtype))
        save_model(folder / own, tensors, mates)
        del tensors
        if mates.rank == 0:
            config = json.dumps(sources.config(name, dtype), indent=2) + "\n"
            write_bytes(folder / own / CONFIG, config.encode())
            copy_other_files(sources.folders[name], folder / own)
    if mates.rank == 0:
        write_bytes(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    mates.wait()
