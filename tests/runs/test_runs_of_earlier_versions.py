"""Runs that an earlier version left can be read: by what a user types, on folders as they were.

``tests/fixtures/runs-0.1`` was written by 0.1.0, with smaller pictures; ``half`` has the networks
that it took off the paths at t = 0.5. It is never written anew: what changes is the code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

STORED = Path(__file__).parents[1] / "fixtures" / "runs-0.1"
RUNS = ("merge", "merge-arch", "sparsify", "reconfigure", "compare", "stream")
PATHS = {"merge": "merge", "sparsify": "sparsify", "reconfigure": "reconfigure/moves/back"}
# The module of the user whose networks were merged with --arch ownnet:gelu.
MODULE = """
from torch import nn
def gelu():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.GELU(), nn.Linear(12, 10))
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A copy of the runs and of the files that they were made from."""
    return shutil.copytree(STORED, tmp_path / "runs")


def same_network(file: Path, other: Path) -> None:
    one, two = load_file(file), load_file(other)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_networks_are_taken_off_their_paths(
    geomerge: Callable[..., Any], runs: Path, name: str
) -> None:
    half = ("--at", "0.5", "--out", "taken.safetensors")
    taken = geomerge("path", PATHS[name], *half, cwd=runs)
    assert taken.returncode == 0, taken.stderr
    same_network(runs / "taken.safetensors", STORED / "half" / f"{name}.safetensors")


@pytest.mark.parametrize("name", PATHS)
def test_what_is_taken_can_be_evaluated(
    geomerge: Callable[..., Any], runs: Path, name: str
) -> None:
    words = ("evaluate", f"half/{name}.safetensors", "--manifold", "digits", "--json")
    found = geomerge(*words, cwd=runs)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["tasks"][0]["accuracy"] > 0.1


def test_a_path_of_own_networks_needs_their_module(
    geomerge: Callable[..., Any], runs: Path
) -> None:
    words = ("path", "merge-arch", "--at", "0.5", "--out", "taken.safetensors")
    refused = geomerge(*words, cwd=runs)
    assert refused.returncode == 2
    assert "cannot import 'ownnet:gelu'" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (runs / "taken.safetensors").exists()
    (runs / "ownnet.py").write_text(MODULE)
    taken = geomerge(*words, cwd=runs)
    assert taken.returncode == 0, taken.stderr
    same_network(runs / "taken.safetensors", STORED / "half" / "merge-arch.safetensors")


def test_every_claim_of_a_merge_holds(geomerge: Callable[..., Any], runs: Path) -> None:
    found = geomerge("verify", "merge", "--json", cwd=runs)
    claims = json.loads(found.stdout)["claims"]
    assert [claim for claim in claims if claim["holds"] is not True] == []
    assert [claim["name"] for claim in claims] == [
        "report.json", "stored files", "recipe", "input a", "input b", "data of a", "data of b",
        "identity: the path starts at a", "identity: the path ends at b",
        "identity: merged.safetensors is the path at the crossover",
        "identity: a walk from a network to itself has length zero",
        "identity: a step with beta = 0 does not move",
        "path", "accuracy of a", "accuracy of b", "accuracy of crossover", "bracket",
        "drift from a", "drift from b", "curve",
        "drift from a by its sketch", "drift from b by its sketch",
    ]  # fmt: skip
    assert found.returncode == 0


def test_a_merge_of_own_networks_is_verified_with_their_module(
    geomerge: Callable[..., Any], runs: Path
) -> None:
    (runs / "ownnet.py").write_text(MODULE)
    claims = json.loads(geomerge("verify", "merge-arch", "--json", cwd=runs).stdout)["claims"]
    failing = {claim["name"]: claim["detail"] for claim in claims if not claim["holds"]}
    # Its pictures were left out of the repository; all else is there.
    assert failing == {"stored files": failing["stored files"]}
    assert "curves.png is not there" in failing["stored files"]


@pytest.mark.parametrize("name", RUNS)
def test_pages_are_made_again(geomerge: Callable[..., Any], runs: Path, name: str) -> None:
    made = geomerge("report", name, cwd=runs)
    assert made.returncode == 0, made.stderr
    page = (runs / name / "report.html").read_text(encoding="utf-8")
    assert json.loads((runs / name / "report.json").read_text())["command"] in unquoted(page)


def unquoted(page: str) -> str:
    for code, sign in (("&#39;", "'"), ("&gt;", ">"), ("&amp;", "&")):
        page = page.replace(code, sign)
    return page
