"""Joint surrogate preset: toward all functions, on texts of tokens drawn by their sketches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from geomerge.data import Inputs, as_they_are
from geomerge.data.text import TextEncoder
from geomerge.expert import text_encoder
from geomerge.merging.few_texts import token_frequencies
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.base import Start
from geomerge.merging.presets.joint import JointPreset
from geomerge.merging.presets.registry import preset
from geomerge.merging.presets.sketches import mean_point

__all__ = ["JointSurrogatePreset"]

DRAWN = 4000  # texts of each network
_SHORTEST, _LONGEST = 4, 14  # tokens drawn for a text


@preset("joint-surrogate")
class JointSurrogatePreset(JointPreset):
    """Walk from the sketches' mean toward all functions, on texts drawn without any data.

    A sketch contains frequencies of tokens: the metric of a token's row in the embedding is zero if
    it never occurred. Tokens of surrogate texts are drawn by the root of that.
    """

    about = "from the mean of sketches toward all functions, on texts of tokens drawn by sketches"
    preference = None  # by its name only: the walk takes time

    def __init__(self, prepared: PreparedMerge) -> None:
        super().__init__(_with_texts(prepared))

    @classmethod
    def problem(cls, prepared: PreparedMerge) -> str | None:
        """Return the problem of networks without a sketch, or without token frequencies in it."""
        for expert in prepared.space:
            if expert.sketch is None and expert.inputs is None:
                return (
                    "the joint-surrogate preset needs a sketch of every network, and there is none "
                    f"for {expert.name}; make it with geomerge sketch, or name its task with "
                    "`inputs`"
                )
            if expert.inputs is None and token_frequencies(expert) is None:
                return (
                    "the joint-surrogate preset draws texts, and the sketch of "
                    f"{expert.name} was not made of a Hugging Face folder with an embedding of "
                    "tokens; use `preset` sketches, or name its task with `inputs`"
                )
        return None

    def starts(self) -> Iterator[Start]:
        """Yield the mean of the weights in the metrics of the sketches."""
        by_sketches = self.space.settle(mean_point(self.prepared))
        yield Start("the mean in the metrics of the sketches", by_sketches)

    @property
    def predicts_drifts(self) -> bool:
        """Whether drifts are measured where the data measures none: on the surrogate texts."""
        return True


def _with_texts(prepared: PreparedMerge) -> PreparedMerge:
    """Return the merge with surrogate texts for every network without inputs."""
    drawn: dict[str, Inputs] = dict(prepared.surrogates)
    for expert in prepared.space:
        weights = token_frequencies(expert)
        if expert.inputs is not None or expert.name in drawn or weights is None:
            continue
        assert expert.folder is not None, "frequencies are of model folders"
        encoder = text_encoder(expert.folder, expert.meta.get("config", {}))
        texts = draw_texts(encoder, weights, DRAWN, prepared.options.machine.seed)
        own = as_they_are(dict(texts), prepared.space.network.device)
        drawn[expert.name] = replace(own, name="surrogate texts")
    if drawn.keys() == prepared.surrogates.keys():
        return prepared
    note = (
        f"{DRAWN} surrogate texts, tokens drawn by the sketch, stood in for the inputs of "
        f"{' and '.join(drawn)}"
    )
    return replace(prepared, notes=[*prepared.notes, note], surrogates=drawn)


def draw_texts(
    encoder: TextEncoder, weights: Tensor, count: int, seed: int
) -> Mapping[str, Tensor]:  # (count, T) each
    """Return texts of independent tokens, framed as the tokenizer frames a text.

    Args:
        encoder: Tokenizer.
        weights: Weight of each token, shape (V,).
        count: Number of texts.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    empty, word = (encoder.encode([text]) for text in ("", "a"))
    assert isinstance(empty, dict)
    assert isinstance(word, dict)
    frame, known = empty["input_ids"][0].long(), word["input_ids"][0].long()
    common = int((frame == known[: len(frame)]).long().cumprod(dim=0).sum())
    first, last = frame[:common], frame[common:]
    chosen = weights.double().cpu().clone()
    special = list(getattr(encoder.tokenizer, "all_special_ids", []))
    chosen[torch.tensor(special, dtype=torch.long)] = 0
    longest = max(1, min(_LONGEST, encoder.max_length - len(frame)))
    drawn = torch.multinomial(chosen, count * longest, replacement=True, generator=generator)
    lengths = torch.randint(min(_SHORTEST, longest), longest + 1, (count,), generator=generator)
    rows = [
        torch.cat([first, tokens[:length], last])
        for tokens, length in zip(drawn.view(count, longest), lengths.tolist(), strict=True)
    ]
    size = len(frame) + longest
    ids, mask = (torch.zeros(count, size, dtype=torch.long) for _ in range(2))
    for k, row in enumerate(rows):
        ids[k, : len(row)], mask[k, : len(row)] = row, 1
    others = {name: torch.zeros_like(ids) for name in word}
    return {**others, "input_ids": ids, "attention_mask": mask}
