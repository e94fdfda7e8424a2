"""Plain text as tasks: blocks without padding, and the tokens that a language model predicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import model_folders
import pytest
import torch

from geomerge.data import ExampleOptions, TextEncoder
from geomerge.data.inputs import UNLABELLED
from geomerge.data.language import load_encoded_task, load_language_task
from geomerge.data.task import Task
from geomerge.errors import TaskError

PAD, CLS, SEP, MASK = 0, 2, 3, 4


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(model_folders.tokenizer(), 12, predicts="next")


def ids_of(task: Task) -> torch.Tensor:
    raw = task.train.inputs.raw
    assert isinstance(raw, dict)
    return raw["input_ids"]


def test_a_causal_model_predicts_what_follows(encoder: TextEncoder, tmp_path: Path) -> None:
    file = model_folders.write_text(tmp_path / "words.txt", "count", 300)
    task = load_language_task(file, encoder)
    ids, labels = ids_of(task), task.train.labels
    assert ids.shape[1] == 12
    assert not bool((ids == PAD).any())
    assert torch.equal(labels[:, :-1], ids[:, 1:])
    assert bool((labels[:, -1] == UNLABELLED).all())
    assert task.measure == "loss"
    assert task.train.predicted == len(ids) * 11


def test_texts_of_a_table_end_with_their_token(encoder: TextEncoder, tmp_path: Path) -> None:
    file = model_folders.write_table(tmp_path / "rows.csv", "count", 300)
    task = load_language_task(file, encoder, ExampleOptions(block_size=8))
    assert ids_of(task).shape[1] == 8
    assert bool((ids_of(task) == SEP).any())  # this tokenizer has no other that ends a text


def test_a_masked_model_predicts_some_tokens(encoder: TextEncoder, tmp_path: Path) -> None:
    file = model_folders.write_text(tmp_path / "words.txt", "count", 300)
    masked = replace(encoder, predicts="masked")
    task = load_language_task(file, masked)
    ids, labels = ids_of(task), task.train.labels
    hidden = labels != UNLABELLED
    assert torch.equal(hidden, ids == MASK)
    assert bool((ids[:, 0] == CLS).all())
    assert bool((ids[:, -1] == SEP).all())
    assert 0.1 < float(hidden.float().mean()) < 0.2
    assert torch.equal(
        labels, load_language_task(file, replace(encoder, predicts="masked")).train.labels
    )


def test_a_test_file_beside_is_the_test_split(encoder: TextEncoder, tmp_path: Path) -> None:
    train = model_folders.write_text(tmp_path / "words-train.txt", "count", 300)
    model_folders.write_text(tmp_path / "words-test.txt", "count", 60, seed=1)
    whole = load_language_task(train, encoder)
    (tmp_path / "words-test.txt").unlink()
    alone = load_language_task(train, encoder)
    assert len(whole.train.labels) + len(whole.select.labels) > len(alone.train.labels)


def test_plain_text_that_cannot_be_used_is_refused(encoder: TextEncoder, tmp_path: Path) -> None:
    few = model_folders.write_text(tmp_path / "few.txt", "count", 10)
    with pytest.raises(TaskError, match="blocks of 12 tokens, expected at least 60; give a longer"):
        load_language_task(few, encoder)
    with pytest.raises(TaskError, match="no file"):
        load_language_task(tmp_path / "none.txt", encoder)
    with pytest.raises(TaskError, match="plain text without labels, and the network a classifier"):
        load_encoded_task(few, replace(encoder, predicts="class"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TaskError, match="no readable text"):
        load_language_task(tmp_path / "bytes.txt", encoder)
