"""Random replacement of tokens, for walks on few texts.

Wang et al. 2018 (SwitchOut, arXiv 1808.07512) draw new tokens from the whole vocabulary in training
on labelled texts. Here targets are the outputs of a teacher on the changed text, so that its
meaning may change too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomerge.networks.batches import Batch, token_mask

__all__ = ["TOKENS", "ReplacedTokens"]

TOKENS = "input_ids"  # entry of a dictionary of tokens
CHANGED, SHARE = 2 / 3, 0.3  # share of the texts that change, and of their tokens


class ReplacedTokens:
    """Replacement of some tokens of some texts by tokens drawn from the vocabulary.

    Args:
        weights: Weights by which tokens are drawn, shape (V,).
        kept: Special tokens, which are neither replaced nor drawn.
        seed: Seed of the draws.

    Example:
        >>> import torch
        >>> mask = torch.ones(2, 6, dtype=torch.long)
        >>> x = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": mask}
        >>> changed = ReplacedTokens(torch.ones(50), [0, 6], seed=0)(x, 0)["input_ids"]
        >>> changed[:, 0].tolist(), changed.equal(x["input_ids"])
        ([0, 6], False)
    """

    def __init__(self, weights: Tensor, kept: Sequence[int], seed: int) -> None:
        self._kept = torch.tensor([*kept], dtype=torch.long)
        self._weights = weights.detach().double().cpu().clamp(min=0)
        self._weights[self._kept] = 0
        self._seed = seed

    def __call__(self, x: Batch, number: int) -> Batch:
        """Return a batch of texts with other tokens, the same for the same number.

        Args:
            x: Texts, tokens and mask of shape (B, T) each.
            number: Number of the batch.
        """
        mask = token_mask(x)
        assert isinstance(x, dict), "texts are dictionaries of tokens"
        assert mask is not None, "texts have a mask"
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * number)
        ids = x[TOKENS].clone()
        changed = torch.rand(len(ids), 1, generator=generator) < CHANGED
        drawn = torch.rand(ids.shape, generator=generator) < SHARE
        free = mask.cpu() & ~torch.isin(ids.cpu(), self._kept)
        places = (changed & drawn & free).nonzero(as_tuple=True)
        if not len(places[0]):
            return x
        tokens = torch.multinomial(
            self._weights, len(places[0]), replacement=True, generator=generator
        )
        ids[places] = tokens.to(ids)
        return {**x, TOKENS: ids}
