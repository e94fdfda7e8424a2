"""Merges of model folders: heads of their own, folders out that transformers opens."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import model_folders
import pytest
import torch
import yaml
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
)

import geomerge as gm
from geomerge.certificate.verify import verify_run
from geomerge.errors import CheckpointError
from geomerge.expert_options import DataOptions
from geomerge.metrics.sketch import SKETCH_FILE
from geomerge.networks.hugging_face import load_network
from geomerge.runs import run_merge

NAMES = {"a": "colour", "b": "count"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("merged-folders")
    base = model_folders.write_base(place / "base")
    for task in NAMES.values():
        model_folders.write_fine_tune(place / task, base, task)
        model_folders.write_table(place / f"{task}-train.csv", task, 80)
        model_folders.write_table(place / f"{task}-test.csv", task, 40, seed=1)
    return place


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    manifolds = tuple(f"{name}={task}-train.csv" for name, task in NAMES.items())
    options = gm.MergeOptions(head="separate", steps=4, metric="euclidean", points=8)
    with chdir(place):
        data = DataOptions(manifold=manifolds, max_inputs=40)
        run_merge(["colour", "count"], options, data, out="merged")
    return place / "merged"


@pytest.mark.parametrize("name", NAMES)
def test_each_head_is_a_folder_named_as_its_input(run: Path, name: str) -> None:
    folder = run / NAMES[name]
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    x = AutoTokenizer.from_pretrained(folder)(["one red cat"], return_tensors="pt")
    whole = gm.from_pretrained(run)
    with torch.no_grad():
        own, logits = model(**x).logits, whole(**x).logits
    columns = slice(0, 2) if name == "a" else slice(2, 5)
    assert torch.allclose(own, logits[:, columns], atol=1e-6)
    labels = list(model_folders.TASKS[NAMES[name]])
    assert [model.config.id2label[k] for k in range(len(labels))] == labels


def test_the_trunk_is_one(run: Path) -> None:
    one, two = (load_network(run / name).weights for name in NAMES.values())
    assert all(torch.equal(one[k], two[k]) for k in one if not k.startswith("classifier"))


def test_the_card_names_what_was_merged(run: Path) -> None:
    head = (run / "count" / "README.md").read_text().split("---")[1]
    fields = yaml.safe_load(head)
    assert fields["base_model"] == ["colour", "count"]
    assert "merge" in fields["tags"]


def test_a_merge_of_texts_is_verified(run: Path) -> None:
    with chdir(run.parent):
        assert all(claim.holds for claim in verify_run(run).claims)


def test_models_that_compute_otherwise_are_refused(place: Path, tmp_path: Path) -> None:
    base = place / "base"
    other = model_folders.config(num_attention_heads=4)
    torch.manual_seed(0)
    heads = model_folders.write_folder(tmp_path / "heads", BertForSequenceClassification(other))
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        gm.merge([place / "colour", heads])
    bigger = model_folders.config(vocab_size=20)
    words = model_folders.write_folder(tmp_path / "words", BertForSequenceClassification(bigger))
    with pytest.raises(CheckpointError, match="15 and 20 tokens"):
        gm.merge([place / "colour", words])
    with pytest.raises(CheckpointError, match="of one architecture"):
        gm.merge([place / "colour", base])


def test_sketches_in_the_folders_are_merged_without_data(place: Path) -> None:
    with chdir(place):
        for task in NAMES.values():
            expert = gm.Expert.load(task, f"{task}-train.csv").with_sketch()
            assert expert.sketch is not None
            gm.save_sketch(Path(task) / SKETCH_FILE, expert.sketch, 0.4)
        options = gm.MergeOptions(head="separate", points=8)
        _, report, _ = run_merge(["colour", "count"], options, base="base", out="blind")
        assert report["preset"] == "sketches"
        assert not report["data"]["walk"]
        assert report["base"] == "base"
        assert all(claim.holds for claim in verify_run("blind").claims)
        for task in NAMES.values():
            (place / task / SKETCH_FILE).unlink()
    one, two = (load_network(place / "blind" / name).weights for name in NAMES.values())
    own = ("classifier", "bert.pooler")
    assert all(torch.equal(one[k], two[k]) == (not k.startswith(own)) for k in one if k in two)
