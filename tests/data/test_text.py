"""Tables of texts: columns and labels found by name, padding that does not count."""

from __future__ import annotations

import json
from pathlib import Path

import model_folders
import pytest
import torch

import geomerge as gm
from geomerge.data import ExampleOptions, TextEncoder, load_text_task
from geomerge.data.inputs import as_they_are
from geomerge.data.text import read_table
from geomerge.errors import OptionError, TaskError
from geomerge.networks.batches import concat, trimmed

CLASSES = {"single": 0, "pair": 1, "many": 2}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(model_folders.tokenizer(), 12, CLASSES)


def test_labels_are_matched_by_the_names_of_the_network(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    file = model_folders.write_table(tmp_path / "all.csv", "count", 60)
    task = load_text_task(file, encoder)
    texts, labels = read_table(file, ExampleOptions(), encoder)
    word = {"one": 0, "two": 1, "three": 2}
    assert all(
        CLASSES[label] == next(word[w] for w in text.split() if w in word)
        for text, label in zip(texts, labels, strict=True)
    )
    assert task.classes == 3
    assert set(task.train.inputs.batch(slice(0, 4))) >= {"input_ids", "attention_mask"}


def test_a_test_file_beside_is_the_test_split(encoder: TextEncoder, tmp_path: Path) -> None:
    train = model_folders.write_table(tmp_path / "count-train.csv", "count", 60)
    test = model_folders.write_table(tmp_path / "count-test.csv", "count", 20, seed=1)
    for file in (train, test):
        task = load_text_task(file, encoder)
        assert [len(s.labels) for s in (task.train, task.select, task.test)] == [48, 12, 20]
    train.unlink()
    assert len(load_text_task(test, encoder).test.labels) == 20


def test_json_lines_and_other_columns(encoder: TextEncoder, tmp_path: Path) -> None:
    texts = [text for text, _ in model_folders.sentences("count", 60)]
    rows = [{"said": text, "of": k % 3} for k, text in enumerate(texts)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(OptionError, match="not clear; name it with `text_column`"):
        load_text_task(file, encoder)
    columns = ExampleOptions("said", "of")
    assert load_text_task(file, encoder, columns).classes == 3
    with pytest.raises(OptionError, match="no column 'sad'; did you mean 'said'"):
        load_text_task(file, encoder, ExampleOptions("sad", "of"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\none cat,dozen\n", "labels that the network does not name: 'dozen'"),
        ("text,label\n", "has no rows"),
        ("text,label\none cat\n", "row 1 of .* has no"),
        ('text,label\n"one cat,single\n', "no readable table"),
    ],
)
def test_a_wrong_table_is_one_sentence(
    encoder: TextEncoder, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(content)
    with pytest.raises(TaskError, match=said):
        load_text_task(file, encoder)
    with pytest.raises(TaskError, match="no file"):
        load_text_task(tmp_path / "none.csv", encoder)


def test_padding_counts_nowhere(encoder: TextEncoder, tmp_path: Path) -> None:
    file = model_folders.write_table(tmp_path / "all.csv", "count", 60)
    inputs = load_text_task(file, encoder).train.inputs
    lengths = inputs.raw["attention_mask"].sum(dim=1)
    assert len(lengths.unique()) > 2
    batches = list(inputs.equal_batches(16))
    assert inputs.equal_batch_count(16) == len(batches)
    assert all(bool(x["attention_mask"].all()) for x in batches)
    assert sum(len(x["attention_mask"]) for x in batches) == len(inputs)
    seen = torch.cat([torch.arange(len(inputs))[index] for index, _ in inputs.parts(16)])
    assert sorted(seen.tolist()) == list(range(len(inputs)))
    joined = concat([trimmed(inputs.batch(slice(k, k + 1))) for k in range(5)])
    assert torch.equal(joined["input_ids"], inputs.batch(slice(0, 5))["input_ids"])


def test_a_pass_has_few_tokens() -> None:
    lengths = torch.arange(700) % 60 + 1
    mask = (torch.arange(60) < lengths[:, None]).long()
    inputs = as_they_are({"input_ids": mask, "attention_mask": mask})
    for parts in (inputs.parts(2000), enumerate(inputs.equal_batches(2000))):
        sizes = [x["attention_mask"].shape for _, x in parts]
        assert sum(count for count, _ in sizes) == 700
        assert len(sizes) > 1
        assert all(count * length <= 4096 for count, length in sizes)


def test_texts_need_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\nsome words,0\n")
    with pytest.raises(TaskError, match="the tokenizer of a Hugging Face folder"):
        gm.load_task(str(tmp_path / "x.csv"))
