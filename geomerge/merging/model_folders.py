"""Merged networks as model folders of Hugging Face, one for each head or one for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.io.files import write_bytes
from geomerge.merging.merged_adapter import write_adapter
from geomerge.merging.result import MergeResult
from geomerge.networks.hugging_face import (
    ConfiguredModel,
    copy_other_files,
    load_config,
    save_model_folder,
)

__all__ = ["distinct_names", "folder_names", "write_model_folders"]

_RUN = {"path", "work", "examples", "plots"}  # folders that a run has already


def folder_names(merged: MergeResult) -> dict[str, str]:
    """Return the name of each network's folder, by the network's name; empty without any.

    Args:
        merged: A merge. Where all networks came from model folders and have separate heads, each
            head gets a folder named as its input was; a common head lies in the run's own folder.
    """
    sources = {expert.name: expert.folder for expert in merged.space}
    if not all(sources.values()):
        return {}
    if merged.space.head != "separate":
        return {merged.space.experts[0].name: ""}
    return distinct_names({k: folder for k, folder in sources.items() if folder is not None}, _RUN)


def distinct_names(folders: Mapping[str, Path], taken: Set[str]) -> dict[str, str]:
    """Return the names of folders, with the network's name behind those that would be one.

    Args:
        folders: Folder of each network, by the network's name.
        taken: Names that something else has.
    """
    names = {k: folder.resolve().name for k, folder in folders.items()}
    counts = Counter(names.values())
    return {k: f"{n}-{k}" if counts[n] > 1 or n in taken else n for k, n in names.items()}


def write_model_folders(
    folder: Path,
    merged: MergeResult,
    base: Path | None = None,
    max_shard_size: str = "5GB",
) -> dict[str, str]:
    """Write the merged network as folders that ``from_pretrained`` of transformers opens.

    Args:
        folder: Folder of the run, or any other.
        merged: The merge.
        base: Common ancestor of the networks, named in the card.
        max_shard_size: Size beyond which weights are written in several files.

    Returns:
        The names of the folders, as :func:`folder_names` returns them.

    Raises:
        RunError: If a folder cannot be written.
    """
    names = folder_names(merged)
    for network, name in names.items():
        expert = merged.space[network]
        module = merged.module(network if name else None)
        model = _with_config(module, _config(merged, expert))
        source = _tokenizer_of(merged, expert)
        if merged.options.machine.adapter_rank is not None:
            kept = write_adapter(folder / name, merged, network, model, base)
            copy_other_files(source, folder / name)
            merged.notes.extend(kept.notes(name or folder.name))
        else:
            dtype = merged.options.machine.dtype or expert.meta.get("dtype")
            save_model_folder(
                folder / name, model, like=source, dtype=dtype, max_shard_size=max_shard_size
            )
        del module, model  # before those of the next network
        paged.give_back()
        if name:
            write_bytes(folder / name / "README.md", _card(merged, expert, base).encode())
    return names


def _tokenizer_of(merged: MergeResult, expert: Expert) -> Path | None:
    """Return the folder whose tokenizer a network has: its own, or the one with all its tokens."""
    folders = [one.folder for one in (expert, *merged.space) if one.folder is not None]
    size = expert.meta["config"].get("vocab_size")
    plain = [folder for folder in folders if (folder / "config.json").is_file()]  # no adapters
    whole = [folder for folder in plain if load_config(folder).get("vocab_size") == size]
    return next(iter(whole), expert.folder)


def _config(merged: MergeResult, expert: Expert) -> dict[str, Any]:
    """Return the configuration of a head's model: its own, with all classes in an offset head."""
    config = dict(expert.meta["config"])
    if merged.space.head == "offset":
        labels: list[str] = []
        for one in merged.space:
            own = one.meta["config"].get("id2label") or {"0": "0", "1": "1"}
            labels += [own[k] for k in sorted(own, key=int)]
        if len(set(labels)) < len(labels):
            labels = [f"{k}: {label}" for k, label in enumerate(labels)]
        config["id2label"] = {str(k): label for k, label in enumerate(labels)}
        config["label2id"] = {label: k for k, label in enumerate(labels)}
    return config


def _with_config(module: nn.Module, config: dict[str, Any]) -> nn.Module:
    """Return a module's weights in a model of a configuration, which has as many outputs."""
    with torch.device("meta"):  # no memory for weights that are replaced
        model = ConfiguredModel(config)()
    model.load_state_dict(module.state_dict(), assign=True)
    return model


def _card(merged: MergeResult, expert: Expert, base: Path | None) -> str:
    """Return the model card of one head: the Hub's fields, and what was merged how."""
    import yaml

    others = [Path(e.source).resolve().name for e in merged.space]
    bases = [*([base.resolve().name] if base is not None else []), *others]
    adapter = merged.options.machine.adapter_rank is not None
    library = "peft" if adapter else "transformers"
    fields = {"library_name": library, "base_model": bases, "tags": ["merge", "geomerge"]}
    head = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    own = Path(expert.source).resolve().name
    lines = [
        f"# {own}, merged",
        "",
        f"The trunk is one for {', '.join(others)}; the head is that of {own}. Merged by geomerge "
        f"{merged.preset.name}, picked by {merged.rule.name}.",
        *(["", *(f"- note: {note}" for note in merged.notes)] if merged.notes else []),
    ]
    return f"---\n{head}---\n\n" + "\n".join(lines) + "\n"
