"""``geomerge sparsify`` and ``reconfigure`` as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from geomerge.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from geomerge.networks.architectures import rebuild_network

QUICK = ["--steps", "20", "--stages", "2"]


@pytest.fixture
def refused(geomerge: Callable[..., Any]) -> Callable[..., str]:
    """Return what runs a command that must leave nothing but a sentence, and returns that."""

    def refused(*words: str | Path, cwd: Path) -> str:
        before = set(cwd.rglob("*"))
        found = geomerge(*words, cwd=cwd)
        assert found.returncode == 2
        assert found.stdout == ""
        assert found.stderr.startswith("geomerge: ")
        assert found.stderr.count("\n") == 1
        assert set(cwd.rglob("*")) == before
        return found.stderr

    return refused


def test_weights_go_and_every_tool_opens_the_result(
    geomerge: Callable[..., Any], refused: Callable[..., str], digits: Path, tmp_path: Path
) -> None:
    words = ["sparsify", digits / "a.pt", "--sparsity", "0.8", "--out", "run", *QUICK]
    found = geomerge(*words, "--torch-prune", "--pt", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "without labels" in found.stdout
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    assert report["results"][-1]["name"] == "walk"
    assert report["results"][-1]["zeros"] == pytest.approx(0.8, abs=1e-4)
    assert {p.name for p in run.iterdir()} >= {"curves.png", "paths.png", "sparse.pt", "path"}

    sparse = load_checkpoint(run / "sparse.safetensors")
    module = rebuild_network(sparse.weights, "lenet-300-100", "a")
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        prune.identity(layer, "weight")
    module.load_state_dict(torch.load(run / "sparse-prune.pt", weights_only=True))
    x = torch.rand(4, 1, 8, 8)
    plain = rebuild_network(sparse.weights, "lenet-300-100", "a")
    torch.testing.assert_close(module(x), plain(x))

    again = geomerge(*words, cwd=tmp_path)
    assert again.returncode == 0
    assert "finished before" in again.stdout
    other = [*words[:3], "0.7", *words[4:]]
    assert "another recipe" in refused(*other, cwd=tmp_path)
    assert geomerge("path", "run", "--at", "0.5", "--out", "half.pt", cwd=tmp_path).returncode == 0


def test_units_go_from_a_network_with_batch_norm(
    geomerge: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),"
        " nn.Linear(288, 10))\n"
    )
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    state = nn.Sequential(*layers).state_dict()
    save_checkpoint(tmp_path / "bn.pt", Checkpoint(state))
    found = geomerge(
        "sparsify", "bn.pt", "--arch", "mine:net", "--manifold", "digits", "--remove", "0:3",
        "--shrink", "--torch-prune", "--out", "run", *QUICK, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "BatchNorm statistics: re-estimate" in found.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [len(units) for units in report["removed"].values()] == [3]
    assert report["shrunk"]["difference"] < 1e-5
    program = torch.export.load(tmp_path / "run" / "shrunk.pt2").module()
    assert program(torch.rand(5, 1, 8, 8)).shape == (5, 10)
    small = geomerge("evaluate", "run/shrunk.safetensors", "--manifold", "digits", cwd=tmp_path)
    masked = geomerge("evaluate", "run/sparse.safetensors", "--manifold", "digits", cwd=tmp_path)
    assert small.returncode == masked.returncode == 0, small.stderr + masked.stderr
    assert small.stdout == masked.stdout


def test_a_plan_goes_on_from_a_run_of_either_kind(
    geomerge: Callable[..., Any], refused: Callable[..., str], digits: Path, tmp_path: Path
) -> None:
    first = ["sparsify", digits / "a.pt", "--remove", "layers.0:150", "--out", "run", *QUICK]
    assert geomerge(*first, cwd=tmp_path).returncode == 0
    (tmp_path / "back.yaml").write_text("- {name: half, restore: {layers.0: 50}}\n")
    found = geomerge(
        "reconfigure", "run", "--plan", "back.yaml", "--out", "two", *QUICK, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    again = geomerge(
        "reconfigure", "two", "--plan", "back.yaml", "--out", "three", *QUICK, cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    report = json.loads((tmp_path / "three" / "report.json").read_text())
    assert [len(u) for u in report["configurations"][-1]["removed"].values()] == [50]
    dense = load_checkpoint(digits / "a.pt").weights["layers.0.weight"]
    back = load_checkpoint(tmp_path / "three" / "half.safetensors").weights["layers.0.weight"]
    assert int((back == dense).all(dim=1).sum()) >= 50
    assert geomerge(
        "path", "three/moves/half", "--at", "1", "--out", "end.pt", cwd=tmp_path
    ).returncode == 0  # fmt: skip
    lost = refused("reconfigure", "run/sparse.safetensors", "--plan", "back.yaml", cwd=tmp_path)
    assert "nothing to come back to" in lost


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "expected one of --sparsity"),
        (["--sparsity", "0.5", "--nm", "2:4"], "expected one of --sparsity"),
        (["--sparsity", "1.5"], "between 0 and 1"),
        (["--sparsity", "0.9999"], "nothing would be left"),
        (["--sparsity", "0.00000001"], "no weight is removed"),
        (["--remove", "layer.0:5"], "did you mean 'layers.0'"),
        (["--remove", "layers.0:300"], "would be empty"),
        (["--remove", "layers.2:1"], "network's outputs"),
        (["--sparsity", "0.5", "--shrink"], "whole units"),
        (["--sparsity", "0.5", "--walk", "pull", "--paths", "2"], "--paths must be 1"),
        (["--sparsity", "0.5", "--seed", "99999999999999999999"], "--seed"),
        (["--sparsity", "0.5", "--choose", "rates", "--budget", "0.1"], "give --remove"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    refused: Callable[..., str], digits: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    assert sentence in refused("sparsify", digits / "a.pt", *words, cwd=tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/absolute", "a/b", ".", "x" * 300, "dense"])
def test_names_of_steps_that_are_no_names_of_files(
    refused: Callable[..., str], digits: Path, tmp_path: Path, name: str
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps([{"name": name, "remove": {"layers.0": 5}}]))
    sentence = refused("reconfigure", digits / "a.pt", "--plan", plan, cwd=tmp_path)
    assert "becomes a file's" in sentence
