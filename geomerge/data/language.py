"""Language modelling tasks: plain text in blocks of tokens, some of which are to be predicted.

All texts are put one after the other and cut into blocks of one length, so that nothing is padded.
A causal language model predicts at each position the token that follows; a masked one those tokens
that were replaced by its mask token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from geomerge.data.collect import Examples
from geomerge.data.inputs import UNLABELLED
from geomerge.data.task import Task, make_task
from geomerge.data.text import (
    PLAIN_TEXT,
    ExampleOptions,
    TextEncoder,
    file_pair,
    load_text_task,
    read_texts,
)
from geomerge.errors import TaskError, first_line

__all__ = ["load_encoded_task", "load_language_task"]

BLOCK = 128  # tokens of a block, where the network takes as many
_FEWEST = 60  # blocks of a text that has no test file: ten for the smallest split
_MASKED = 0.15  # share of tokens that a masked language model predicts (Devlin et al. 2019)
_SEED = 0  # of the choice of masked tokens


def load_encoded_task(
    file: Path, encoder: TextEncoder, options: ExampleOptions | None = None, device: str = "cpu"
) -> Task:
    """Load a task from texts, with the labels that a network predicts: classes, or tokens.

    Args:
        file: A table of texts, as :func:`~geomerge.data.text.load_text_task` takes it, or for a
            language model what :func:`load_language_task` does.
        encoder: Tokenizer of the network.
        options: Columns, and length of the blocks of language models.
        device: Device of the batches.

    Raises:
        TaskError: If the file is missing or damaged, or does not fit the network.
        OptionError: If the columns are not clear.
    """
    if encoder.predicts != "class":
        return load_language_task(file, encoder, options, device)
    if file.suffix.lower() == PLAIN_TEXT:
        raise TaskError(
            f"{file} is plain text without labels, and the network a classifier, expected a table "
            "of texts and labels; write it as CSV"
        )
    return load_text_task(file, encoder, options, device)


def load_language_task(
    file: Path, encoder: TextEncoder, options: ExampleOptions | None = None, device: str = "cpu"
) -> Task:
    """Load a task from plain text.

    Args:
        file: A ``.txt`` file in UTF-8, which is one text, or a table with a column of texts, each
            of which ends with the tokenizer's token for that. Two files ``NAME-train`` and
            ``NAME-test`` are split as :func:`~geomerge.data.text.load_text_task` does.
        encoder: Tokenizer of a network that predicts tokens.
        options: Column of the texts and length of the blocks.
        device: Device of the batches.

    Returns:
        The task, whose labels are tokens. What is left of a text beyond whole blocks is not used.

    Raises:
        TaskError: If the file is missing, damaged or too short.
        OptionError: If the column is not clear.
    """
    options = options or ExampleOptions()
    train, test = file_pair(file)
    files = [train] if test in (None, train) else [train, test]
    length = min(options.block_size or BLOCK, encoder.max_length)
    examples: list[Examples] = []
    for part in files:
        blocks = _blocks(part, encoder, options, length)
        fewest = _FEWEST if test is None else 10
        if len(blocks) < fewest:
            raise TaskError(
                f"{part} has {len(blocks)} blocks of {length} tokens, expected at least {fewest}; "
                "give a longer text, or a smaller `block_size`"
            )
        examples.append(_masked(blocks, encoder) if encoder.predicts == "masked" else _next(blocks))
    held = examples[-1] if test is not None else None
    return make_task(str(file), examples[0], held, None, device)


def _blocks(
    file: Path, encoder: TextEncoder, options: ExampleOptions, length: int
) -> Tensor:  # (N, length)
    """Return the tokens of a file in blocks, between the tokens that begin and end a block."""
    if file.suffix.lower() == PLAIN_TEXT:
        texts, end = [_read(file)], None
    else:
        texts, end = read_texts(file, options), encoder.token("eos", "sep")
    found: list[int] = []
    encoded = encoder.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    for tokens in encoded:
        found += [*tokens] if end is None else [*tokens, end]
    before, after = [], []
    if encoder.predicts == "masked":
        before, after = [encoder.token("cls", "bos")], [encoder.token("sep", "eos")]
    around = [[token for token in side if token is not None] for side in (before, after)]
    inner = max(1, length - len(around[0]) - len(around[1]))
    count = len(found) // inner
    blocks = torch.tensor(found[: count * inner], dtype=torch.long).view(count, inner)
    first, last = (torch.tensor(side, dtype=torch.long).expand(count, -1) for side in around)
    return torch.cat([first, blocks, last], dim=1)


def _next(blocks: Tensor) -> Examples:
    """Return blocks with the token that follows each, as the labels of a causal model."""
    labels = torch.full_like(blocks, UNLABELLED)
    labels[:, :-1] = blocks[:, 1:]
    return {"input_ids": blocks, "attention_mask": torch.ones_like(blocks)}, labels


def _masked(blocks: Tensor, encoder: TextEncoder) -> Examples:
    """Return blocks with some tokens masked, and those tokens as labels."""
    mask = encoder.token("mask")
    if mask is None:
        raise TaskError(
            "the tokenizer of the network has no mask token, expected one for a masked language "
            "model; copy the whole tokenizer into the folder"
        )
    special = {encoder.token(kind) for kind in ("cls", "sep", "bos", "eos", "mask")}
    words = torch.ones_like(blocks, dtype=torch.bool)
    for token in special - {None}:
        words &= blocks != token
    generator = torch.Generator().manual_seed(_SEED)
    hidden = (torch.rand(blocks.shape, generator=generator) < _MASKED) & words
    labels = torch.where(hidden, blocks, UNLABELLED)
    shown = torch.where(hidden, mask, blocks)
    return {"input_ids": shown, "attention_mask": torch.ones_like(blocks)}, labels


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise TaskError(f"no file {file}; check the name of the task") from error
    except (OSError, ValueError) as error:
        raise TaskError(
            f"{file} is no readable text ({first_line(error)}); write it in UTF-8"
        ) from error
