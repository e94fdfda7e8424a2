"""Finished runs, opened from their folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from merges import run_of
from torch import nn

import geomerge as gm
from geomerge.errors import CheckpointError, OptionError, RunError
from geomerge.runs.run import open_run

RESULTS = {
    "merge": ("merge", "merged"),
    "separate": ("merge", "merged"),
    "sparsify": ("sparsify", "sparse"),
    "moves": ("reconfigure", "back"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_run_says_what_it_is_and_gives_its_result(tiny_runs: Path, name: str) -> None:
    run = open_run(str(tiny_runs / name))
    kind, file = RESULTS[name]
    assert run.kind == kind
    assert run.report == json.loads((tiny_runs / name / "report.json").read_text())
    assert run.recipe == json.loads((tiny_runs / name / "recipe.json").read_text())
    assert run.notes == run.report["notes"]
    stored = gm.load_checkpoint(tiny_runs / name / f"{file}.safetensors").weights
    expert, module = run.expert(), run.module()
    assert torch.equal(expert.weights, expert.network.ravel(stored))
    assert all(torch.equal(value, stored[k]) for k, value in module.state_dict().items())
    assert run.module() is not module
    assert kind in repr(run)


@pytest.mark.parametrize("name", ["merge", "sparsify"])
def test_any_network_of_a_path(tiny_runs: Path, name: str) -> None:
    run = open_run(tiny_runs / name)
    for t in (0.0, 0.3, 1.0):
        assert torch.equal(run.expert(t).weights, run.path.at(t))
    with pytest.raises(OptionError, match="between 0 and 1"):
        run.expert(2.0)


def test_a_run_without_a_path_says_so(tiny_runs: Path) -> None:
    run = open_run(tiny_runs / "moves")
    with pytest.raises(OptionError, match=r"has no path to take t = 0\.5 of"):
        run.expert(0.5)


def test_a_merge_verifies_itself_and_writes_its_page_again(tiny_runs: Path, tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        shutil.copy(tiny_runs / name, tmp_path)
    shutil.copytree(tiny_runs / "merge", tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.verify().holds
    page = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    assert run.write_page().read_bytes() == page


@pytest.mark.parametrize("name", RESULTS)
def test_a_notebook_shows_the_first_screen_of_the_page(tiny_runs: Path, name: str) -> None:
    run = open_run(tiny_runs / name)
    shown = run._repr_html_()
    assert f"geomerge {run.kind}" in shown
    for note in run.notes:
        assert note.partition("'")[0] in shown
    if name == "merge":
        accuracy = run.report["results"][-1]["test"]["a"]
        assert f"{100 * accuracy:.2f} %" in shown


def own_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.GELU(), nn.Linear(6, 10))


def test_networks_of_a_factory_that_is_gone_are_given_by_hand(tmp_path: Path) -> None:
    (tmp_path / "gone_net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential("
        "nn.Flatten(), nn.Linear(64, 6), nn.GELU(), nn.Linear(6, 10))\n"
    )
    files = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        files.append(tmp_path / f"{name}.pt")
        meta = {"architecture": "gone_net:make", "task": "digits"}
        gm.save_checkpoint(files[-1], gm.Checkpoint(own_network().state_dict(), meta))
    options = {"manifold": ("a=digits", "b=digits"), "steps": 2, "points": 8, "damping": 1e-3}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        folder, _, _ = run_of(files, options, out=tmp_path / "run")
        sys.modules.pop("gone_net")
    with pytest.raises(OptionError, match=r"cannot import 'gone_net:make' .* `arch`"):
        open_run(folder).path  # noqa: B018
    run = open_run(folder, arch=own_network)
    x = torch.rand(4, 64)
    assert torch.equal(run.module()(x), run.module(run.report["crossover"]["t"])(x))
    verification = run.verify()
    assert verification.holds
    assert all(claim.holds for claim in verification.claims)
    with pytest.raises(CheckpointError, match="does not fit"):
        open_run(folder, arch=lambda: nn.Linear(3, 3)).path  # noqa: B018


@pytest.mark.parametrize("content", [None, "", "[1]", '{"recipe": {"nothing": {}}}', "{}"])
def test_folders_of_no_run_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(RunError) as error:
        open_run(tmp_path)
    assert "\n" not in str(error.value)
