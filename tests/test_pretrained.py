"""A finished run, or a file, is one call away from a module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geomerge as gm
from geomerge.errors import CheckpointError, OptionError, RunError
from geomerge.evaluation.accuracy import accuracy


def inputs() -> Tensor:
    return gm.load_task("digits").test.inputs.batch(slice(None))


@pytest.mark.parametrize(
    ("run", "file"),
    [("merge", "merged"), ("sparsify", "sparse"), ("moves", "back"), ("separate", "merged")],
)
def test_a_run_gives_its_result(tiny_runs: Path, run: str, file: str) -> None:
    network = gm.from_pretrained(tiny_runs / run)
    assert isinstance(network, nn.Module)
    assert not network.training
    assert all(p.requires_grad for p in network.parameters())
    same = gm.from_pretrained(str(tiny_runs / run / f"{file}.safetensors"))
    stored = gm.load_checkpoint(tiny_runs / run / f"{file}.safetensors").weights
    for found in (network, same):
        state = found.state_dict()
        assert set(state) == set(stored)
        assert all(torch.equal(state[name], stored[name]) for name in stored)


def test_its_answers_are_those_of_the_report(tiny_runs: Path) -> None:
    report = json.loads((tiny_runs / "merge" / "report.json").read_text())
    right = gm.load_task("digits").test.labels
    network = gm.from_pretrained(tiny_runs / "merge")
    found = float((network(inputs()).argmax(dim=1) == right).float().mean())
    assert found == pytest.approx(report["results"][-1]["test"]["a"])


def test_any_point_of_a_path(tiny_runs: Path) -> None:
    x, report = inputs(), json.loads((tiny_runs / "merge" / "report.json").read_text())
    ends = [gm.from_pretrained(tiny_runs / "merge", t=t)(x) for t in (0, 1)]
    for logits, name in zip(ends, "ab", strict=True):
        assert torch.equal(logits, gm.from_pretrained(tiny_runs / f"{name}.pt")(x))
    at = report["crossover"]["t"]
    assert torch.equal(
        gm.from_pretrained(tiny_runs / "merge", t=at)(x), gm.from_pretrained(tiny_runs / "merge")(x)
    )
    half = gm.from_pretrained(tiny_runs / "sparsify", t=0.5)
    network = gm.Network(half)
    assert accuracy(network, network.initial, gm.load_task("digits").test) > 0.5


def test_it_can_be_trained_on(tiny_runs: Path) -> None:
    network = gm.from_pretrained(tiny_runs / "merge").train()
    network(inputs()[:4]).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), "
        "nn.Linear(8, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import own_net  # type: ignore[import-not-found]

    state = own_net.make().state_dict()
    gm.save_checkpoint("own.safetensors", gm.Checkpoint(state, {"architecture": "own_net:make"}))
    gm.save_checkpoint("bare.safetensors", gm.Checkpoint(state))
    one = gm.from_pretrained("own.safetensors")
    two = gm.from_pretrained("bare.safetensors", arch="own_net:make")
    x = torch.randn(3, 6)
    assert torch.equal(one(x), two(x))
    with pytest.raises(CheckpointError, match="no architecture that geomerge recognises"):
        gm.from_pretrained("bare.safetensors")


@pytest.mark.parametrize(
    ("source", "words", "error", "message"),
    [
        ("nowhere", {}, RunError, "no folder or file .*nowhere; name .*nothing is downloaded"),
        ("nowhere.safetensors", {}, gm.GeomergeError, "no file .*nowhere.safetensors"),
        ("", {}, RunError, "holds no network of a finished"),
        ("plan.yaml", {}, CheckpointError, "is a text, expected a file of weights"),
        ("a.pt", {"t": 0.5}, OptionError, "has no path to take t = 0.5 of"),
        ("moves", {"t": 0.5}, OptionError, "has no path to take t = 0.5 of"),
        ("merge", {"t": 1.5}, OptionError, "expected t between 0 and 1"),
        ("merge", {"device": "abacus"}, OptionError, "cannot compute on 'abacus'"),
        ("a.pt", {"arch": "mpl"}, OptionError, "did you mean 'mlp'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    tiny_runs: Path, source: str, words: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as found:
        gm.from_pretrained(tiny_runs / source, **words)  # type: ignore[arg-type]
    assert "\n" not in str(found.value)
