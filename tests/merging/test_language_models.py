"""Merges of causal language models: by inputs, by sketches, as commands, measured by perplexity."""

from __future__ import annotations

import json
import re
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import model_folders
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import geomerge as gm
from geomerge.certificate.verify import verify_run
from geomerge.cli.app import app
from geomerge.expert_options import DataOptions
from geomerge.merging.presets.sketches import LANGUAGE_DAMPING
from geomerge.networks.hugging_face import load_network
from geomerge.runs import run_merge
from geomerge.runs.compare import run_compare

NAMES = {"a": "colour", "b": "count"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("language-models")
    base = model_folders.write_language_model(place / "base")
    for task in NAMES.values():
        model_folders.write_language_model(place / task, base, task)
        model_folders.write_text(place / f"{task}.txt", task, 400)
    return place


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    manifolds = tuple(f"{name}={task}.txt" for name, task in NAMES.items())
    options = gm.MergeOptions(preset="joint", metric="euclidean", steps=6, points=8)
    with chdir(place):
        data = DataOptions(manifold=manifolds, max_inputs=60)
        run_merge(["colour", "count"], options, data, base="base", out="merged")
    return place / "merged"


def test_evaluate_tells_loss_and_perplexity(place: Path) -> None:
    with chdir(place):
        found = CliRunner().invoke(app, ["evaluate", "count", "--manifold", "count.txt"])
        table = CliRunner().invoke(app, ["evaluate", "count", "base", "--manifold", "count.txt"])
    assert found.exit_code == 0
    told = re.search(r"loss ([\d.]+), perplexity ([\d.]+), of (\d+) tokens", found.stdout)
    assert told is not None
    own = float(told[2])
    assert own == pytest.approx(torch.tensor(float(told[1])).exp().item(), rel=1e-2)
    assert own < 10  # of 15 tokens
    assert "perplexity on the test split" in table.stdout
    assert told[2] in table.stdout


def test_the_merged_folder_is_a_language_model(run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(run, local_files_only=True)
    x = AutoTokenizer.from_pretrained(run)(["one red cat"], return_tensors="pt")
    given = {name: x[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.allclose(model(**given).logits, gm.from_pretrained(run)(**given).logits)
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)  # tied


def test_report_and_page_tell_perplexities(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert [network["measure"] for network in report["networks"].values()] == ["loss", "loss"]
    rows = {row["name"]: row["test"] for row in report["results"]}
    assert rows["crossover"]["a"] <= rows["a"]["a"] * 1.05
    shown = f"perplexity {1 / rows['crossover']['a']:.2f}"
    assert shown in (run / "report.html").read_text()
    card = (run / "README.md").read_text()
    assert "type: perplexity" in card
    assert f"{1 / rows['crossover']['a']:.2f}" in card


def test_a_merge_of_language_models_is_verified(run: Path) -> None:
    with chdir(run.parent):
        assert all(claim.holds for claim in verify_run(run).claims)


def test_the_same_call_again_changes_nothing(run: Path) -> None:
    manifolds = tuple(f"{name}={task}.txt" for name, task in NAMES.items())
    with chdir(run.parent):
        data = DataOptions(manifold=manifolds, max_inputs=60)
        options = gm.MergeOptions(preset="joint", metric="euclidean", steps=6, points=8)
        _, _, before = run_merge(["colour", "count"], options, data, base="base", out="merged")
    assert before


def test_sketches_alone_merge_better_than_the_average(place: Path) -> None:
    experts, tasks = [], []
    for task in NAMES.values():
        with chdir(place):
            own = gm.Expert.load(place / task, f"{task}.txt").with_sketch(inputs=60)
        assert own.task is not None
        tasks.append(own.task)
        experts.append(own)
    base = gm.Expert.load(place / "base", inputs=False)
    blind = [replace(e, task=None, inputs=None) for e in experts]
    merged = gm.merge(blind, base=base, preset="sketches")
    assert merged.preset.stages[0].candidates == (LANGUAGE_DAMPING,)
    average = blind[0].weights.lerp(blind[1].weights, 0.5)
    found = [
        [replace(blind[0], weights=w).loss(task=task) for task in tasks]
        for w in (merged.w, average)
    ]
    assert sum(found[0]) < sum(found[1])


def test_methods_are_compared_by_perplexity(place: Path) -> None:
    manifolds = tuple(f"{name}={task}.txt" for name, task in NAMES.items())
    with chdir(place):
        _, report, _ = run_compare(
            ["colour", "count"],
            gm.CompareOptions(only=("a", "b", "average", "fisher", "ensemble")),
            DataOptions(manifold=manifolds, max_inputs=20),
            base="base",
            out="compared",
        )
    rows = {row["name"]: row for row in report["rows"]}
    assert all(row["reason"] is None for row in rows.values())
    assert rows["a"]["worst_drop"] == pytest.approx(
        max(0.0, rows["b"]["test"]["b"] / rows["a"]["test"]["b"] - 1), abs=1e-6
    )


def test_a_class_of_a_language_model_has_no_budget(place: Path) -> None:
    with chdir(place), pytest.raises(gm.GeomergeError, match="predicts tokens"):
        gm.merge(
            ["colour", "count"], manifold=("a=colour.txt", "b=count.txt"), max_inputs=30,
            budget={"a/1": 0.1}, steps=2,
        )  # fmt: skip


def test_weights_are_those_of_the_folder(place: Path) -> None:
    found = load_network(place / "count")
    assert found.meta["architecture"] == "GPT2LMHeadModel"
