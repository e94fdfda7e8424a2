"""Vocabularies of different sizes: rows that one network lacks come from the one that has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import geomerge as gm
from geomerge.errors import CheckpointError, Problems
from geomerge.merging.check import check_merge
from geomerge.merging.prepare import prepare
from geomerge.runs import run_merge


class Reader(nn.Module):
    """A classifier of tokens; or, with an output for each token, a language model."""

    def __init__(self, tokens: int = 9, outputs: str = "classes") -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3 if outputs == "classes" else tokens)
        if outputs == "tied":
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(x).mean(1)).tanh())


def reader(tokens: int, outputs: str = "classes", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Reader(tokens, outputs)


def expert(tokens: int, outputs: str = "classes", seed: int = 0) -> gm.Expert:
    x = torch.randint(0, tokens, (40, 5), generator=torch.Generator().manual_seed(seed))
    task = gm.Task.from_tensors(x, x[:, 0] % 3, name=f"of {tokens}")
    return gm.Expert.from_module(reader(tokens, outputs, seed), task)


def prepared(*experts: gm.Expert, **options: Any) -> Any:
    return prepare(list(experts), gm.MergeOptions(**options), Problems(strict=True))


@pytest.mark.parametrize("outputs", ["classes", "tied", "wide"])
def test_rows_come_from_the_network_that_has_them(outputs: str) -> None:
    a, b = expert(9, outputs), expert(11, outputs, seed=1)
    found = prepared(a, b, vocabulary="union")
    first, second = (found.space.network.unravel(e.weights) for e in found.space)
    own, other = a.network.unravel(a.weights), b.network.unravel(b.weights)
    wide = ["embed.weight", *({"wide": ["head.weight", "head.bias"]}.get(outputs, []))]
    wide += ["head.bias"] if outputs == "tied" else []
    for name in own:
        if name in wide:
            assert torch.equal(first[name], torch.cat([own[name], other[name][9:]])), name
        else:
            assert torch.equal(first[name], own[name]), name
        assert torch.equal(second[name], other[name]), name
    x = torch.randint(0, 9, (6, 5))
    before, after = a.network.logits(a.weights, x), found.space.experts[0].network.logits
    assert torch.equal(after(found.space.experts[0].weights, x)[:, : before.shape[1]], before)
    assert any("has the last rows of 'embed.weight' from Reader" in note for note in found.notes)


def test_a_merge_reads_all_tokens() -> None:
    merged = gm.merge(
        [expert(9), expert(11, seed=1)], vocabulary="union", steps=4, points=8, damping=1e-2
    )
    module = merged.module()
    assert module.embed.num_embeddings == 11
    assert module(torch.tensor([[10, 9, 0]])).shape == (1, 3)


@pytest.mark.parametrize("outputs", ["classes", "tied", "wide"])
def test_without_the_option_the_message_names_it(outputs: str) -> None:
    with pytest.raises(CheckpointError, match="vocabularies of 9 and 11 tokens, expected one; use"):
        prepared(expert(9, outputs), expert(11, outputs, seed=1))


def test_networks_of_another_make_are_no_vocabularies() -> None:
    other = reader(11)
    other.inner = nn.Linear(4, 5)
    other.head = nn.Linear(5, 3)
    with pytest.raises(CheckpointError, match="are not of one architecture"):
        prepared(expert(9), gm.Expert.from_module(other), vocabulary="union")


def test_state_dicts_of_two_vocabularies(tmp_path: Path) -> None:
    for name, tokens in (("a", 9), ("b", 11)):
        torch.save(reader(tokens).state_dict(), tmp_path / f"{name}.pt")
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    make: Callable[[], nn.Module] = Reader
    found = gm.check(files, arch=make, vocabulary="union")
    assert not any("vocabular" in problem for problem in found.problems)
    found = gm.check(files, arch=make)
    assert [p for p in found.problems if "`vocabulary` union" in p]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fine-tunes of one base; tokens were added to the vocabulary of the second."""
    place = tmp_path_factory.mktemp("vocabularies")
    base = model_folders.write_base(place / "base")
    for task in ("colour", "count"):
        model_folders.write_fine_tune(place / task, base, task)
        model_folders.write_table(place / f"{task}.csv", task, 60)
    model = AutoModelForSequenceClassification.from_pretrained(place / "count")
    tokens = AutoTokenizer.from_pretrained(place / "count")
    tokens.add_tokens(["purple", "seven"])
    model.resize_token_embeddings(len(tokens), mean_resizing=False)
    for written in (model, tokens):
        written.save_pretrained(place / "count")
    return place


def test_folders_get_all_tokens(folders: Path, tmp_path: Path) -> None:
    files = [folders / "colour", folders / "count"]
    manifolds = tuple(f"{n}={folders / t}.csv" for n, t in (("a", "colour"), ("b", "count")))
    told = {"head": "separate", "manifold": manifolds}
    refused = check_merge(files, told).problems
    assert len(refused) == 1
    assert "vocabularies of 15 and 17 tokens" in refused[0]
    assert "`vocabulary` union" in refused[0]
    options = gm.MergeOptions(
        head="separate", vocabulary="union", steps=4, points=8, metric="euclidean", bn=None
    )
    from geomerge.loading import DataOptions

    run_merge(files, options, DataOptions(manifold=manifolds, max_inputs=40), out=tmp_path / "run")
    for name in ("colour", "count"):
        tokens = AutoTokenizer.from_pretrained(tmp_path / "run" / name)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / name)
        assert model.config.vocab_size == 17
        assert tokens.convert_tokens_to_ids("seven") == 16
        assert model(**tokens(["purple cat"], return_tensors="pt")).logits.isfinite().all()
    rows = "bert.embeddings.word_embeddings.weight"
    own = load_file(folders / "count" / "model.safetensors")[rows]
    assert load_file(tmp_path / "run" / "colour" / "model.safetensors")[rows].shape == own.shape


def test_tokens_of_two_numbers_are_refused(folders: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folders / "colour", tmp_path / "colour")
    text = (tmp_path / "colour" / "tokenizer.json").read_text()
    text = text.replace('"red"', '"swap"').replace('"blue"', '"red"').replace('"swap"', '"blue"')
    (tmp_path / "colour" / "tokenizer.json").write_text(text)
    a, b = (gm.Expert.load(f) for f in (tmp_path / "colour", folders / "count"))
    with pytest.raises(CheckpointError, match="number 'blue' as 5 and 6"):
        prepared(a, b, vocabulary="union", head="separate")
