"""Vocabularies of different sizes: rows of embeddings that one network has and another has not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError
from geomerge.expert import Expert
from geomerge.merging.same_make import two_vocabularies
from geomerge.networks.hugging_face import load_tokenizer

__all__ = ["VOCABULARIES", "with_one_vocabulary"]

VOCABULARIES = ("union",)


def with_one_vocabulary(experts: Sequence[Expert], treatment: str | None) -> list[Expert]:
    """Return experts whose embeddings have as many rows as the largest, the larger ones' rows.

    Tokens that were added to a vocabulary are the last rows of the embedding, and of the output
    layer where that is as wide. A network that lacks rows takes them from the one with the most, so
    that the merged network has them as they are there.

    Args:
        experts: Networks.
        treatment: ``"union"``, or None, with which different vocabularies are refused.

    Raises:
        CheckpointError: If vocabularies differ and are not to be united, or a tokenizer gives a
            token of the smaller vocabulary another number.
    """
    tables = [_tables(expert.network.module) for expert in experts]
    shapes = [expert.network.shapes for expert in experts]
    names = [name for name in tables[0] if all(name in other for other in tables[1:])]
    names = [name for name in names if len({own[name].shape[0] for own in tables}) > 1]
    names = [name for name in names if len({own[name].shape[1:] for own in tables}) == 1]
    if not names:
        return list(experts)
    sizes = {name: [len(own[name]) for own in tables] for name in names}
    wide: dict[str, str] = {}  # tensors with a row for each token, by the embedding's name
    for name in dict.fromkeys(k for own in shapes for k in own):
        rows = [own[name][0] if own.get(name) else -1 for own in shapes]
        owner = next((table for table, counts in sizes.items() if counts == rows), None)
        if owner is not None:
            wide[name] = owner
        elif len({own.get(name) for own in shapes}) > 1 and name not in _last_layer(experts[0]):
            return list(experts)  # of another make, as the comparison of networks says
    counts = next(iter(sizes.values()))
    most = max(range(len(experts)), key=lambda k: counts[k])
    if treatment != "union":
        other = next(k for k, count in enumerate(counts) if count != counts[0])
        first, second = ((experts[k].source, counts[k]) for k in (0, other))
        raise two_vocabularies(first, second)
    for expert in experts:
        _check_tokens(expert, experts[most])
    donors = {
        name: experts[max(range(len(experts)), key=lambda k: sizes[table][k])]
        for name, table in wide.items()
    }
    return [_widened(expert, donors) for expert in experts]


def _tables(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a module's embeddings by their names."""
    return {
        f"{name}.weight" if name else "weight": layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Embedding)
    }


def _last_layer(expert: Expert) -> set[str]:
    """Return the names of the tensors of the last layer, whose outputs are the head's concern."""
    last = expert.network.last_layer
    return {name for name in expert.network.shapes if name.rpartition(".")[0] == last}


def _check_tokens(expert: Expert, largest: Expert) -> None:
    """Refuse a tokenizer that gives a token another number than that of the largest vocabulary."""
    folders = expert.folder, largest.folder
    if expert is largest or folders[0] is None or folders[1] is None:
        return
    try:
        own, other = (load_tokenizer(folder).get_vocab() for folder in folders if folder)
    except CheckpointError:  # without tokenizers there are no texts that could be read otherwise
        return
    apart = sorted(token for token, number in own.items() if other.get(token) != number)
    if apart:
        raise CheckpointError(
            f"the tokenizers of {expert.source} and {largest.source} number {apart[0]!r} as "
            f"{own[apart[0]]} and {other.get(apart[0], 'nothing')}, expected tokens that were "
            "added behind those of one base; give networks of one tokenizer"
        )


def _widened(expert: Expert, donors: dict[str, Expert]) -> Expert:
    """Return an expert with the rows that it lacks, which are those of other experts."""
    network = expert.network
    module = network.module_at(expert.weights)
    tensors = network.unravel(expert.weights)
    done: set[int] = set()
    grown = False
    for name, donor in donors.items():
        theirs = donor.network.unravel(donor.weights)[name]
        owner, _, last = name.rpartition(".")
        layer: Any = module.get_submodule(owner)
        parameter = getattr(layer, last)
        more = theirs[len(tensors[name]) :]
        if not len(more):
            continue
        grown = True
        if id(parameter) not in done:  # tied tensors are one
            done.add(id(parameter))
            parameter.data = torch.cat([tensors[name], more.to(tensors[name])])
        if isinstance(layer, nn.Embedding):
            layer.num_embeddings = len(theirs)
        for other in module.modules():  # output layers, tied or not
            if isinstance(other, nn.Linear) and other.weight is parameter:
                other.out_features = len(theirs)
    if not grown:
        return expert
    meta, notes = dict(expert.meta), list(expert.notes)
    largest = next(iter(donors.values()))
    if "config" in meta:
        size = largest.meta["config"]["vocab_size"]
        meta["config"] = {**meta["config"], "vocab_size": size}
    rows = next(iter(donors))
    notes.append(f"{expert.source} has the last rows of {rows!r} from {largest.source}")
    if expert.sketch is not None:
        notes.append(f"the sketch of {expert.source} is not used: its vocabulary was widened")
    made = network.alike(module)
    return replace(
        expert, network=made, weights=made.initial, meta=meta, sketch=None, notes=tuple(notes)
    )
