"""Walks toward fine-tunes with few texts: tokens are replaced, and all teachers see all texts.

These are more inputs than a task's own, and a teacher needs no label for its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.data.replaced_tokens import TOKENS, ReplacedTokens
from geomerge.expert import Expert, text_encoder
from geomerge.networks.batches import concat, token_mask

__all__ = [
    "RATE",
    "TEXTS",
    "joined_texts",
    "token_frequencies",
    "token_replacement",
    "token_weights",
]

FEW = 1000  # texts; with more of them hardly a batch is drawn twice
TEXTS = 32  # changed texts per gradient
# Learning rate, divided by the number of teachers: every batch is drawn anew and small. Chosen on
# selection splits of the BERTs' training files, with 256 texts of each.
RATE = 0.3


def joined_texts(own: Inputs, others: Sequence[Inputs], seed: int) -> Inputs:
    """Return a network's texts with as many of each of the others at most.

    Args:
        own: Texts of the network.
        others: Texts of the others; those with other entries are left out.
        seed: Seed of the draw from more texts than the network has.
    """
    assert isinstance(own.raw, dict), "texts are dictionaries of tokens"
    found = [own.raw]
    for inputs in others:
        few = inputs if len(inputs) <= len(own) else inputs.sample(len(own), seed)
        if isinstance(few.raw, dict) and few.raw.keys() == own.raw.keys():
            found.append(few.raw)
    return replace(own, raw=concat(found))


def token_weights(
    diagonal: Tensor,  # (V, d)
) -> Tensor:  # (V,)
    """Return weights by which tokens are drawn, from the metric of their rows in an embedding."""
    return diagonal.clamp(min=0).sum(dim=1).sqrt()


def token_frequencies(expert: Expert) -> Tensor | None:  # (V,)
    """Return the weights of tokens by an expert's sketch; None if it has no embedding of them."""
    vocabulary = expert.meta.get("config", {}).get("vocab_size")
    if expert.sketch is None or expert.folder is None:
        return None
    network, metric = expert.network, expert.sketch.metric
    for name in metric.diagonal_only:
        shape = network.shapes[name]
        if len(shape) == 2 and shape[0] == vocabulary:
            whole = metric.diagonal_of(lambda eigenvalues: eigenvalues)
            return token_weights(whole[network.slices[name]].view(shape))
    return None


def token_replacement(expert: Expert, inputs: Inputs, seed: int) -> ReplacedTokens | None:
    """Return the replacement of tokens for a classifier with a few texts, None for others.

    Tokens are drawn by the sketch's frequencies, evenly without a sketch.

    Args:
        expert: Expert.
        inputs: Its inputs.
        seed: Seed of the draws.
    """
    folder, config = expert.folder, expert.meta.get("config", {})
    first = inputs.batch(slice(0, 1))
    if folder is None or inputs.at_once is not None or len(inputs) > FEW:
        return None
    if token_mask(first) is None or not isinstance(first, dict) or TOKENS not in first:
        return None
    vocabulary = config.get("vocab_size")
    if not isinstance(vocabulary, int):
        return None
    weights = token_frequencies(expert)
    encoder = text_encoder(folder, config)
    special = list(getattr(encoder.tokenizer, "all_special_ids", []))
    return ReplacedTokens(torch.ones(vocabulary) if weights is None else weights, special, seed)
