from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from geomerge import Checkpoint, MergeOptions, load_checkpoint, merge, save_checkpoint
from geomerge.checking import check_merge
from geomerge.errors import GeomergeError


def geomerge(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "from geomerge.cli.app import main; main()",
         *map(str, args)],
        capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip


def changed(source: Path, file: Path, **tensors: torch.Tensor | None) -> Path:
    """Write a network with some tensors replaced or, None, taken away."""
    found = load_checkpoint(source)
    names = {name.replace("__", "."): value for name, value in tensors.items()}
    weights = {k: v for k, v in {**found.weights, **names}.items() if v is not None}
    save_checkpoint(file, Checkpoint(weights, found.meta))
    return file


def test_a_merge_without_problems_is_what_was_said(digits: Path) -> None:
    files = [digits / "a.pt", digits / "b.pt"]
    options: dict[str, Any] = {"manifold": ("digits",), "steps": 5, "damping": 1e-5, "points": 8}
    found = check_merge(files, options)
    assert found.problems == []
    assert found.preset == "sketch"
    assert found.networks["a"]["inputs"] == 1199
    assert found.networks["b"]["sketch"]["task"] == "digits-permuted"
    merged = merge([load_checkpoint(f) for f in files], MergeOptions(**options))
    assert merged.plan.preset == found.preset
    assert found.time is not None
    assert sum(found.time["steps"].values()) >= len(merged.path.steps)
    assert found.time["seconds"] > 0
    assert found.memory is not None
    on_disk = sum(f.stat().st_size for f in merged.path.folder.glob("*.safetensors"))
    assert 0.5 < found.memory["path_on_disk"] / on_disk < 1.5


def test_every_preset_is_foreseen(digits: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.pt"
    save_checkpoint(bare, Checkpoint(load_checkpoint(digits / "b.pt").weights))
    both = {"manifold": ("digits", "digits-permuted")}
    assert check_merge([digits / "a.pt", digits / "b.pt"], both).preset == "joint"
    paper = check_merge([digits / "a.pt", bare], {"manifold": ("digits",)})
    assert paper.problems == []
    assert paper.preset == "paper"
    assert any("recognised" in note or "nothing says its task" in note for note in paper.notes)


def test_all_problems_are_named_at_once(digits: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([float("nan")])}, tmp_path / "nan.pt")
    found = check_merge(
        [digits / "a.pt", tmp_path / "none.pt", tmp_path / "nan.pt"],
        {"manifold": ("digtis",), "head": "shred", "device": "nowhere", "sketch": ("a=none.st",)},
    )
    for piece in (
        "none.pt", "not all finite", "did you mean 'digits'", "unknown head", "'nowhere'",
        "no sketch none.st",
    ):  # fmt: skip
        assert any(piece in problem for problem in found.problems), piece
    assert len(found.problems) == 6
    assert found.preset is None


@pytest.mark.parametrize(
    ("tensors", "piece"),
    [
        ({"layers__0__bias": torch.zeros(7)}, "not of one architecture"),
        ({"layers__0__bias": None}, "not of one architecture"),
        ({"running_mean": torch.zeros(3)}, "parameters and buffers"),
        ({"layers__0__bias": torch.zeros(300, dtype=torch.int64)}, "whole numbers in both"),
    ],
)
def test_networks_that_differ_are_refused(
    digits: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], piece: str
) -> None:
    other = changed(digits / "b.pt", tmp_path / "c.pt", **tensors)
    found = check_merge([digits / "a.pt", other], {"manifold": ("digits",)})
    assert any(piece in problem for problem in found.problems), found.problems


def test_heads_labels_and_sketches_are_compared(digits: Path, tmp_path: Path) -> None:
    a, b = load_checkpoint(digits / "a.pt"), load_checkpoint(digits / "b.pt")
    weights = {k: v[:5] if k.startswith("layers.2") else v for k, v in b.weights.items()}
    save_checkpoint(tmp_path / "few.pt", Checkpoint(weights, b.meta))
    found = check_merge([digits / "a.pt", tmp_path / "few.pt"], {"manifold": ("digits",)})
    assert any("--head offset" in problem for problem in found.problems)
    found = check_merge([tmp_path / "few.pt", digits / "a.pt"], {"manifold": ("digits-permuted",)})
    assert any("10 classes" in problem for problem in found.problems), found.problems
    save_checkpoint(tmp_path / "stale.pt", Checkpoint(a.weights, b.meta, b.sketch))
    found = check_merge([digits / "a.pt", tmp_path / "stale.pt"], {"manifold": ("digits",)})
    assert any("other weights" in problem for problem in found.problems)
    meta = {**b.meta, "normalisation": {"mean": [0.1], "std": [0.7]}}
    save_checkpoint(tmp_path / "other.pt", Checkpoint(b.weights, meta, b.sketch))
    found = check_merge([digits / "a.pt", tmp_path / "other.pt"], {"manifold": ("digits",)})
    assert any("trained with (0.1,)" in problem for problem in found.problems)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"manifold": ("digits", "digits", "digits")},
        {"manifold": ("c=digits",)},
        {"manifold": ("digits",), "preset": "joint"},
        {"manifold": ("digits",), "metric": "exact"},
        {"manifold": ("digits@0-4",), "normalisation": ("mnist=0/1",)},
        {"manifold": ("digits",), "task": ("b=mnist",), "data_root": "nowhere"},
    ],
)
def test_where_merge_refuses_check_has_refused(digits: Path, options: dict[str, Any]) -> None:
    files = [digits / "a.pt", digits / "b.pt"]
    with pytest.raises(GeomergeError) as error:
        merge([load_checkpoint(f) for f in files], MergeOptions(**options))
    assert str(error.value) in check_merge(files, options).problems


def test_the_command_says_it_and_exits(digits: Path, tmp_path: Path) -> None:
    good = geomerge("check", digits / "a.pt", digits / "b.pt", "--manifold", "digits", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "preset sketch" in good.stdout
    assert "estimated" in good.stdout
    bad = geomerge("check", "a.pt", "b.pt", "--manifold", "digtis", "--json", cwd=tmp_path)
    assert bad.returncode == 2, bad.stdout
    assert len(json.loads(bad.stdout)["problems"]) == 3
    shown = geomerge("check", "a.pt", "b.pt", "--manifold", "digtis", cwd=tmp_path)
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr
    assert len(shown.stderr.splitlines()) == 3
    assert list(tmp_path.iterdir()) == []
