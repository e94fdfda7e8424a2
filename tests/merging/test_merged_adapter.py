"""Merged adapters kept as one adapter of a given rank, held against peft."""

from __future__ import annotations

from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import model_folders
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

import geomerge as gm
from geomerge.errors import CheckpointError, OptionError
from geomerge.merging.merged_adapter import truncated_change
from geomerge.merging.model_folders import write_model_folders
from geomerge.metrics import measure_metric
from geomerge.metrics.kronecker.factor import decompose
from geomerge.metrics.kronecker.forms import dense_factors, in_form
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.factor_form import FactorForm
from geomerge.runs import run_merge

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft itself
CLASSES = {"one": 2, "two": 3}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def dense(layer: KroneckerLayer) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.inputs.dense(), layer.outputs.dense()


def kronecker(d_out: int, d_in: int) -> KroneckerLayer:
    inputs, outputs = randn(9, d_in, seed=1), randn(9, d_out, seed=2)
    factors = [decompose(x.T @ x) for x in (inputs, outputs)]
    return KroneckerLayer("x", slice(0, d_in * d_out), None, factors[0], factors[1])


def test_a_change_of_the_rank_is_kept_whole() -> None:
    change = randn(6, 2) @ randn(2, 5, seed=3)
    for factors in (None, dense(kronecker(6, 5))):
        up, down, kept = truncated_change(change, 2, factors)
        torch.testing.assert_close(up @ down, change)
        assert kept == pytest.approx(1)


def test_a_change_is_cut_where_its_metric_is_small() -> None:
    change, layer = randn(6, 5), kronecker(6, 5)

    def cost(gap: torch.Tensor) -> float:
        return float((gap * (layer.outputs.dense() @ gap @ layer.inputs.dense())).sum())

    up, down, kept = truncated_change(change, 2, dense(layer))
    flat_up, flat_down, _ = truncated_change(change, 2)
    assert cost(change - up @ down) < cost(change - flat_up @ flat_down)
    assert kept == pytest.approx(1 - cost(change - up @ down) / cost(change), abs=0.02)
    u, values, v = torch.linalg.svd(change)
    torch.testing.assert_close(flat_up @ flat_down, (u[:, :2] * values[:2]) @ v[:2])


@pytest.mark.parametrize("form", [FactorForm.BLOCKS, FactorForm.DIAGONAL])
@pytest.mark.parametrize("bias", [False, True])
def test_a_change_is_cut_in_the_form_of_the_metric_that_memory_allows(
    form: FactorForm, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomerge.metrics.kronecker.forms._WIDE", 4)
    d_out, d_in = 9, 6
    network = gm.Network(torch.nn.Linear(d_in, d_out, bias=bias).double())
    metric = measure_metric(network, network.initial, randn(40, d_in, seed=4))
    network.factor_form = form
    formed = in_form(metric, network)
    place = network.slices["weight"]
    factors = dense_factors(formed, place)
    assert factors is not None

    def cost(change: torch.Tensor) -> float:
        v = torch.zeros(network.n, dtype=torch.float64)
        v[place] = change.flatten()
        return formed.inner(v, v)

    change = randn(d_out, d_in)
    a, b = factors[0][:d_in, :d_in], factors[1]
    assert float((change * (b @ change @ a)).sum()) == pytest.approx(cost(change), rel=0.02)
    up, down, kept = truncated_change(change, 2, factors)
    flat_up, flat_down, _ = truncated_change(change, 2)
    assert cost(change - up @ down) < cost(change - flat_up @ flat_down)
    assert kept == pytest.approx(1 - cost(change - up @ down) / cost(change), abs=0.02)
    assert dense_factors(formed, slice(1, 5)) is None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("merged-adapters")
    base = model_folders.write_base(place / "base")
    for seed, (name, classes) in enumerate(CLASSES.items()):
        model_folders.write_adapter(place / name, base, classes, seed)
    return place


def logits(model: torch.nn.Module) -> torch.Tensor:
    x = model_folders.tokenizer()(["red cat", "one two three"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**x).logits


def test_peft_adds_the_merged_adapter_to_its_base(place: Path) -> None:
    experts = [gm.Expert.load(place / name) for name in CLASSES]
    few = [
        replace(
            e,
            inputs=gm.Task.from_tensors(
                torch.randint(4, 14, (40, 6)), torch.zeros(40, dtype=torch.long)
            ).train.inputs,
            task=None,
        )
        for e in experts
    ]
    with chdir(place):
        options = gm.MergeOptions(head="separate", adapter_rank=8, points=8)
        sketched = [e.with_sketch() for e in few]
        for expert, name in zip(sketched, CLASSES, strict=True):
            assert expert.sketch is not None
            gm.save_sketch(place / name / "geomerge-sketch.safetensors", expert.sketch)
        _, report, _ = run_merge(list(CLASSES), options, base="base", out="merged")
    assert any("keeps 100.0% or more" in note for note in report["notes"])
    whole = gm.from_pretrained(place / "merged")
    columns = {"one": slice(0, 2), "two": slice(2, 5)}
    for name, classes in CLASSES.items():
        start = AutoModelForSequenceClassification.from_pretrained(
            place / "base", num_labels=classes
        )
        adapted = PeftModel.from_pretrained(start, place / "merged" / name)
        assert torch.allclose(logits(adapted), logits(whole)[:, columns[name]], atol=1e-5)
        assert (place / "merged" / name / "tokenizer.json").is_file()
        assert not (place / "merged" / name / "model.safetensors").exists()
        with chdir(place):  # the base as it was named
            again = gm.Expert.load(place / "merged" / name)
        assert torch.allclose(logits(again.module()), logits(adapted), atol=1e-5)


def test_a_change_that_no_sketch_measures_is_named(place: Path, tmp_path: Path) -> None:
    x = torch.randint(4, 14, (40, 6))
    task = gm.Task.from_tensors(x, torch.zeros(40, dtype=torch.long))
    experts = [
        replace(gm.Expert.load(place / name), inputs=task.train.inputs, sketch=None)
        for name in CLASSES
    ]
    merged = gm.merge(experts, preset="joint", head="separate", adapter_rank=8, steps=1)
    write_model_folders(tmp_path, merged, place / "base")
    said = [note for note in merged.notes if "has the largest singular values of" in note]
    for note, name in zip(said, CLASSES, strict=True):
        assert note.startswith(f"the adapter in {name} has")
        assert "bert.encoder.layer.0.attention.self.query" in note


def test_what_is_no_adapter_of_one_base_is_refused(place: Path, tmp_path: Path) -> None:
    task = model_folders.write_fine_tune(tmp_path / "colour", place / "base", "colour")
    with pytest.raises(CheckpointError, match="is a whole model, expected a LoRA adapter"):
        gm.merge([place / "one", task], head="separate", adapter_rank=2)
    torch.manual_seed(5)
    other = model_folders.write_folder(tmp_path / "other", BertForMaskedLM(model_folders.config()))
    apart = model_folders.write_adapter(tmp_path / "apart", other, 3, 1)
    with pytest.raises(OptionError, match="expected adapters of one base"):
        gm.merge([place / "one", apart], head="separate", adapter_rank=2)
    with pytest.raises(OptionError, match="is for LoRA adapters"):
        gm.merge([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)], adapter_rank=2)
