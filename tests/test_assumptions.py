"""What files leave open about a network, such as its activation, is said by every door."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.errors import CheckpointError
from geomerge.loading import load_experts

TASKS = {"a": "digits@0-1", "b": "digits@2-3"}
OPEN = "a.pt does not record its architecture: recognised by its weights as mlp, and ReLU"
QUICK = {"steps": 3, "damping": 1e-3}


def module(seed: int, between: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), between(), nn.Linear(6, 10)).eval()


def make() -> nn.Module:
    return module(0)


MODULES = {"a": module(0), "b": module(1)}
X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with bare state dicts of networks with Tanh, a.pt and b.pt, to work in."""
    monkeypatch.chdir(tmp_path)
    for name, one in MODULES.items():
        torch.save(one.state_dict(), f"{name}.pt")
    return tmp_path


def test_python_is_warned_at_its_own_line(files: Path) -> None:
    with pytest.warns(gm.AssumptionWarning, match=OPEN) as told:
        expert = gm.Expert.load("a.pt", TASKS["a"])
    assert [warning.filename for warning in told] == [__file__]
    assert expert.warnings == (str(told[0].message),)
    assert expert.architecture == "mlp"
    assert not torch.allclose(expert.module()(X), MODULES["a"](X))
    assert issubclass(gm.AssumptionWarning, UserWarning)
    with pytest.warns(gm.AssumptionWarning, match=OPEN):
        gm.from_pretrained("a.pt")
    assert gm.inspect(expert).notes[0] == expert.warnings[0]
    small = gm.sparsify(expert, sparsity=0.5, steps=2, stages=1)
    assert small.notes[0] == expert.warnings[0]


@pytest.mark.parametrize("arch", ["mlp:tanh", make])
def test_a_stated_activation_is_kept_in_files(files: Path, arch: object) -> None:
    expert = gm.Expert.load("a.pt", TASKS["a"], arch)
    assert torch.equal(expert.module()(X), MODULES["a"](X))
    assert expert.warnings == ()
    if callable(arch):
        assert expert.meta["architecture"] == f"{__name__}:make"
    expert.save("own.safetensors")
    again = gm.Expert.load("own.safetensors")
    assert again.architecture == expert.architecture
    assert torch.equal(again.module()(X), MODULES["a"](X))


def test_results_of_modules_are_opened_with_their_activation(tmp_path: Path) -> None:
    experts = [gm.Expert.from_module(MODULES[k], TASKS[k]) for k in "ab"]
    merged = gm.merge(experts, folder=tmp_path / "path", **QUICK)
    assert not any("assumed" in note for note in merged.notes)
    assert merged.expert.meta["architecture"] == "mlp:tanh"
    path = gm.WeightPath(tmp_path / "path")
    assert torch.equal(path.module(0)(X), MODULES["a"](X))
    assert torch.equal(path.module(merged.t)(X), merged.module()(X))


def test_what_was_assumed_stands_in_the_report_and_is_printed(files: Path) -> None:
    words = ["merge", "a.pt", "b.pt", "--manifold", TASKS["a"], "--manifold", TASKS["b"]]
    more = ["--steps", "3", "--damping", "1e-3", "--points", "8"]
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "geomerge", *words, *more, "--out", "run"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in "ab":
        note = f"note: {OPEN.replace('a.pt', name + '.pt')} between its layers was assumed; say "
        assert ran.stdout.count(f"{note}--arch such as mlp:tanh") == 1
    assert "Warning" not in ran.stderr
    assert "was assumed" not in ran.stderr
    page = (files / "run" / "report.html").read_text()
    assert "and ReLU between its layers was assumed" in page
    run = gm.open_run("run")
    assert any(note.startswith(OPEN) for note in run.notes)
    assert run.expert().warnings == ()  # the run is of the network that was assumed


def test_one_record_holds_for_bare_files_beside_it(files: Path) -> None:
    gm.Expert.load("a.pt", arch="mlp:tanh").save("own.safetensors")
    told = "b.pt does not record its architecture: that of own.safetensors was assumed"
    with pytest.warns(gm.AssumptionWarning, match=told):
        _, b = load_experts(["own.safetensors", "b.pt"])
    assert torch.equal(b.module()(X), MODULES["b"](X))
    expert = gm.Expert.from_module(MODULES["a"], TASKS["a"])
    with pytest.warns(gm.AssumptionWarning, match="that of Sequential was assumed"):
        merged = gm.merge([expert, "b.pt"], **QUICK)
    assert torch.equal(merged.path.module(1)(X), MODULES["b"](X))
    assert any("that of Sequential was assumed" in note for note in merged.notes)


def test_two_activations_are_never_merged(files: Path) -> None:
    gm.Expert.load("a.pt", TASKS["a"], "mlp:tanh").save("tanh.safetensors")
    gm.Expert.load("b.pt", TASKS["b"], "mlp:gelu").save("gelu.safetensors")
    with pytest.raises(CheckpointError, match="expected networks of one architecture"):
        gm.merge(["tanh.safetensors", "gelu.safetensors"], **QUICK)
    one = gm.Expert.from_module(MODULES["a"], TASKS["a"])
    other = gm.Expert.from_module(module(1, nn.GELU), TASKS["b"])
    with pytest.raises(CheckpointError, match="another function than Sequential with its weights"):
        gm.merge([one, other], **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.AssumptionWarning)
        bare = gm.Expert.load("b.pt", TASKS["b"])
    with pytest.raises(CheckpointError, match=r"`arch` where a file does not record it"):
        gm.merge([one, bare], **QUICK)


def test_two_names_of_one_architecture_are_merged(files: Path) -> None:
    for name, arch in (("a", "lenet-300-100:tanh"), ("b", "mlp:tanh")):
        gm.Expert.load(f"{name}.pt", TASKS[name], arch).save(f"{name}.safetensors")
    experts = [gm.Expert.load(f"{name}.safetensors", TASKS[name]) for name in "ab"]
    assert {expert.meta["architecture"] for expert in experts} == {
        "lenet-300-100:tanh",
        "mlp:tanh",
    }
    merged = gm.merge(experts, **QUICK)
    assert torch.equal(merged.path.module(1)(X), MODULES["b"](X))


def test_an_architecture_against_the_record_is_noted(files: Path) -> None:
    gm.Expert.load("a.pt", arch="mlp:tanh").save("own.safetensors")
    expert = gm.Expert.load("own.safetensors", arch="mlp:gelu")
    assert expert.meta["architecture"] == "mlp:gelu"
    assert "records a mlp:tanh, and was taken for a mlp:gelu" in expert.notes[0]
