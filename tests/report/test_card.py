"""The model card of a run says what its report says, in the form that the Hub reads."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from merges import run_of
from torch import nn

from geomerge import AssumptionWarning, Checkpoint, load_task, save_checkpoint
from geomerge.certificate.verify import verify_run
from geomerge.expert_options import ExpertOptions
from geomerge.io.files import sha256
from geomerge.pruning.options import SparsifyOptions
from geomerge.report.card import short, write_sparsify_card
from geomerge.runs import run_sparsify

RUNS = ("merge", "separate", "sparsify", "moves")


def parts(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def measured(name: str, report: dict[str, Any]) -> dict[str, float]:
    """Accuracies of the result on the test splits, by task, as the report has them."""
    if name == "sparsify":
        return {"digits": report["results"][-1]["test"]}
    if name == "moves":
        return {"digits": report["configurations"][-1]["result"]["test"]}
    (row,) = (r for r in report["results"] if r["name"] == "crossover")
    return {report["networks"][side]["task"]: value for side, value in row["test"].items()}


@pytest.mark.parametrize("name", RUNS)
def test_the_hub_reads_the_numbers_of_the_report(tiny_runs: Path, name: str) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    text = (tiny_runs / name / "README.md").read_text()
    card = hub.ModelCard(text)  # reads it, without any network
    data = card.data
    assert data.library_name == "geomerge"
    assert data.pipeline_tag == "image-classification"
    assert data.metrics == ["accuracy"]
    found = {one.dataset_name: one for one in data.eval_results}
    assert {k: v.metric_value for k, v in found.items()} == measured(
        name, report_of(tiny_runs / name)
    )
    for one in found.values():
        assert (one.task_type, one.metric_type) == ("image-classification", "accuracy")
        assert one.dataset_split == "test"
    assert data.license is None
    again = hub.ModelCardData(
        eval_results=data.eval_results, model_name=data.model_name, tags=data.tags
    )
    assert again.to_dict()["model-index"] == yaml.safe_load(text.split("---\n")[1])["model-index"]


@pytest.mark.parametrize("name", RUNS)
def test_tables_show_the_report_and_every_row_has_all_cells(tiny_runs: Path, name: str) -> None:
    head, body = parts(tiny_runs / name)
    for value in measured(name, report_of(tiny_runs / name)).values():
        assert f"**{100 * value:.2f}**" in body
    for table in re.findall(r"(?:^\|.*\n)+", body, re.M):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(cells)) == 1, table
        assert len(cells) > 2
    assert "{{" not in body
    assert "\n\n\n" not in body
    for file in re.findall(r"!\[.*\]\((.*)\)", body):
        assert (tiny_runs / name / file).is_file()
    for file, digest in re.findall(r"\| `([\w.]+)` \| `([0-9a-f]{64})` \|", body):
        place = next(f / file for f in (tiny_runs / name, tiny_runs) if (f / file).is_file())
        assert sha256(place.read_bytes()) == digest
    assert f"# {head['model-index'][0]['name']}\n" in body


def test_the_command_makes_the_run_again(
    geomerge: Callable[..., Any], tiny_runs: Path, tmp_path: Path
) -> None:
    _, body = parts(tiny_runs / "merge")
    (command,) = re.findall(r"```sh\n(.*)\n```", body)
    program, *words = shlex.split(command)
    assert program == "geomerge"
    done = geomerge(*words, "--out", tmp_path / "again", cwd=tiny_runs)
    assert done.returncode == 0, done.stderr
    for file in ("merged.safetensors", "recipe.json", "README.md"):
        assert (tmp_path / "again" / file).read_bytes() == (tiny_runs / "merge" / file).read_bytes()


def test_heads_and_limits_are_said(tiny_runs: Path) -> None:
    _, body = parts(tiny_runs / "separate")
    assert "| `digits` | (batch, 1, 8, 8) | 0.3053 | 0.3761 | 0 to 9 |" in body
    assert "| `digits-permuted` | (batch, 1, 8, 8) | 0.3053 | 0.3761 | 10 to 19 |" in body
    assert "Separate head: a block of outputs for each task" in body
    _, moves = parts(tiny_runs / "moves")
    assert "4 of `1`" in moves
    _, sparse = parts(tiny_runs / "sparsify")
    assert "shrunk.pt2" in sparse
    for text in (body, moves, sparse):
        assert "## Licence" in text
        assert "without a warning" in text


def test_the_certificate_knows_the_card(tiny_runs: Path) -> None:
    report = report_of(tiny_runs / "merge")
    digest = sha256((tiny_runs / "merge" / "README.md").read_bytes())
    assert report["certificate"]["files"]["README.md"] == digest
    assert verify_run(tiny_runs / "merge").holds


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_no_path_of_the_machine_in_it(tiny_runs: Path, name: str) -> None:
    for file in (tiny_runs / name).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for place in (tiny_runs, Path.home(), Path.cwd()):
                assert f"{place}/".encode() not in content, file
    assert list((tiny_runs / name).glob("*.safetensors"))


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    report = {
        "results": [
            {"name": "dense", "zeros": 0.0, "test": 1.0, "agreement": 1.0},
            {"name": "walk", "zeros": 0.5, "test": 0.75, "agreement": 0.5},
        ],
        "network": {"file": "x`|<b>\n# no: [1].pt", "sha256": "0" * 64, "architecture": "a|b:c"},
        "removed": {},
        "paths": [{}],
        "notes": ["kept on /far/away/data.npz alone"],
        "data": {"walk": {"split": "train", "inputs": 5}, "last_leg": None},
        "command": "geomerge sparsify",
        "geomerge": "0",
        "torch": "0",
    }
    (tmp_path / "sparse.safetensors").write_bytes(b"weights")
    task = load_task("digits")
    object.__setattr__(task, "name", "/far/away/data.npz")
    write_sparsify_card(tmp_path, report, {"network": task})
    head, body = parts(tmp_path)
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "data.npz"
    assert "/far/away" not in body
    assert "kept on data.npz alone" in body
    assert len(re.findall("^# ", body, re.M)) == 1
    assert "which Python must be able to import" in body


def test_a_network_of_no_known_task_has_a_card_without_its_numbers(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
        save_checkpoint(tmp_path / f"{name}.pt", Checkpoint(module.state_dict()))
    options = {"manifold": ("a=digits",), "preset": "paper", "steps": 3, "points": 8}
    with pytest.warns(AssumptionWarning, match="ReLU between its layers was assumed"):
        folder, _, _ = run_of([tmp_path / "a.pt", tmp_path / "b.pt"], options, out=tmp_path / "run")
    head, body = parts(folder)
    assert [r["dataset"]["name"] for r in head["model-index"][0]["results"]] == ["digits"]
    assert "| b | `b.pt` | not known | `mlp` |" in body


@pytest.mark.parametrize(
    ("name", "plain"),
    [("mnist", "mnist"), ("/data/x.npz", "x.npz"), ("a/b.npz@0-4", "b.npz@0-4"), ("m:f", "m:f")],
)
def test_tasks_are_named_without_folders(name: str, plain: str) -> None:
    assert short(name) == plain


def test_data_sets_of_the_hub_are_linked(real_data: Path, tmp_path: Path, tiny_runs: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 10))
    save_checkpoint(
        tmp_path / "a.pt", Checkpoint(module.state_dict(), {"architecture": "mlp", "task": "mnist"})
    )
    options = SparsifyOptions(sparsity=0.5, steps=2, stages=1, inputs=50)
    data = ExpertOptions(data_root=str(real_data))
    folder, _, _ = run_sparsify(tmp_path / "a.pt", options, data, out=tmp_path / "run")
    head, _ = parts(folder)
    assert head["datasets"] == ["ylecun/mnist"]
    assert head["model-index"][0]["results"][0]["dataset"]["type"] == "ylecun/mnist"
    assert "datasets" not in parts(tiny_runs / "merge")[0]
