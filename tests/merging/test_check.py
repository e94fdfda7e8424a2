from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import merged_of
from torch import nn

from geomerge import (
    AssumptionWarning,
    Checkpoint,
    Expert,
    MergeOptions,
    Task,
    load_checkpoint,
    load_task,
    save_checkpoint,
)
from geomerge.errors import GeomergeError, Problems
from geomerge.expert_options import DataOptions
from geomerge.loading import load_experts
from geomerge.merging import cost, resident
from geomerge.merging.check import check, check_merge
from geomerge.merging.choice import plan_merge
from geomerge.merging.plane import grid_points

BOTH = ("digits", "digits-permuted")


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
    merged = merged_of(files, options)
    assert merged.preset.name == found.preset
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
    with pytest.warns(AssumptionWarning, match="bare.pt does not record its architecture"):
        unknown = check_merge([digits / "a.pt", bare], {"manifold": ("digits",)})
    assert unknown.problems == []
    assert unknown.preset == "surrogate"
    assert any("that of a.pt was assumed" in note for note in unknown.notes)
    assert any("its task is not known" in note for note in unknown.notes)
    assert any("stood in for the inputs of b" in note for note in unknown.notes)


def test_all_problems_are_named_at_once(digits: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([float("nan")])}, tmp_path / "nan.pt")
    found = check_merge(
        [digits / "a.pt", tmp_path / "none.pt", tmp_path / "nan.pt"],
        {"manifold": ("digtis",), "head": "shred", "device": "nowhere", "sketch": ("a=none.st",)},
    )
    for piece in (
        "none.pt", "not all finite", "did you mean 'digits'", "unknown head", "'nowhere'",
        "none.st of a sketch",
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
    assert any("`head` offset" in problem for problem in found.problems)
    found = check_merge([tmp_path / "few.pt", digits / "a.pt"], {"manifold": ("digits-permuted",)})
    assert any("10 classes" in problem for problem in found.problems), found.problems
    save_checkpoint(tmp_path / "stale.pt", Checkpoint(a.weights, b.meta, b.sketch))
    found = check_merge([digits / "a.pt", tmp_path / "stale.pt"], {"manifold": ("digits",)})
    assert any("other weights" in problem for problem in found.problems)
    meta = {**b.meta, "normalisation": {"mean": [0.1], "std": [0.7]}}
    save_checkpoint(tmp_path / "other.pt", Checkpoint(b.weights, meta, b.sketch))
    found = check_merge([digits / "a.pt", tmp_path / "other.pt"], {"manifold": ("digits",)})
    assert any("trained with mean 0.1" in problem for problem in found.problems)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "joint"},
        {"manifold": ("digits", "digits", "digits")},
        {"manifold": ("c=digits",)},
        {"manifold": ("digits",), "preset": "joint"},
        {"manifold": ("digits",), "metric": "exact"},
        {"manifold": ("digits@0-4",), "normalisation": ("mnist=0/1",)},
        {"manifold": ("digits",), "task": ("b=mnist",), "data_root": "nowhere"},
        {"manifold": ("digits",), "pick": "c>=0.5"},
        {"manifold": ("digits",), "pick": "best"},
        {"manifold": ("digits",), "budget": ("c=0.1",)},
        {"manifold": ("digits",), "budget": ("b/3=0.1",)},
        {"manifold": ("digits",), "budget": ("a/77=0.1",)},
        {"manifold": ("digits",), "learn": "damping", "metric": "euclidean"},
        {"manifold": ("digits",), "learn": "damping", "preset": "paper"},
        {"manifold": ("digits",), "relax": True, "keep_zeros": True},
        {"manifold": ("digits",), "memory": "1MB"},
        {"manifold": ("digits",), "align": "wieghts"},
    ],
)
def test_where_merge_refuses_check_has_refused(
    digits: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "base_bytes", lambda: 10**9)  # both name the least memory
    files = [digits / "a.pt", digits / "b.pt"]
    with pytest.raises(GeomergeError) as error:
        merged_of(files, options)
    assert str(error.value) in check_merge(files, options).problems


def test_every_choice_that_cannot_be_had_is_named(digits: Path, tmp_path: Path) -> None:
    b = load_checkpoint(digits / "b.pt")
    meta = {k: v for k, v in b.meta.items() if k not in ("task", "sketch")}
    save_checkpoint(tmp_path / "b.pt", Checkpoint(b.weights, meta))
    found = check_merge(
        [digits / "a.pt", tmp_path / "b.pt"],
        {
            "manifold": ("digits",), "pick": "balanced", "memory": "1MB",
            "budget": ("a/77=0.1", "b/3=0.1"),
        },
    )  # fmt: skip
    for piece in (
        "`pick` balanced needs labelled data", "class 77, which a does not have",
        "`budget` b/3 needs inputs", "`memory` 1MB is too little",
    ):  # fmt: skip
        assert any(piece in problem for problem in found.problems), piece
    assert len(found.problems) == 4
    several = check_merge([digits / "a.pt", digits / "b.pt"], {"budget": ("b", "a=x", "a=0.1")})
    assert sum("`budget` NETWORK=NUMBER" in problem for problem in several.problems) == 2


def test_a_network_that_cannot_be_aligned_is_named(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from torch import nn\n"
        "class Odd(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        assert not self.layer.weight.requires_grad\n"
        "        return self.layer(x.flatten(1))\n"
        "def make():\n"
        "    return Odd()\n"
    )
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from geomerge import Checkpoint, save_checkpoint; from odd import make\n"
        "meta = {'architecture': 'odd:make', 'task': 'digits'}\n"
        "for name in 'ab': save_checkpoint(f'{name}.pt', Checkpoint(make().state_dict(), meta))\n"
        "from geomerge.merging.check import check, check_merge\n"
        "options = {'manifold': ('digits',), 'align': 'weights', 'pick': 'b>=0.x'}\n"
        "print(*check_merge(['a.pt', 'b.pt'], options).problems, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path,
        check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 2
    assert "can trace" in done.stdout
    assert "leave out `align`" in done.stdout


def test_of_networks_that_differ_only_headers_are_read(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        save_checkpoint(tmp_path / f"{name}.safetensors", load_checkpoint(digits / f"{name}.pt"))
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert check_merge(files, {"manifold": ("digits",)}).preset == "sketch"
    other = changed(files[1], tmp_path / "c.safetensors", layers__0__bias=torch.zeros(7))
    read: list[Path] = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read.append(file) or whole(file))
    found = check_merge([files[0], other], {"manifold": ("digtis",), "head": "shred"})
    for piece in ("not of one architecture", "did you mean 'digits'", "unknown head"):
        assert any(piece in problem for problem in found.problems), piece
    assert not {files[0], other} & set(read)
    content = files[0].read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[:-4])
    damaged = check_merge([tmp_path / "short.safetensors", files[1]], {"manifold": ("digits",)})
    assert any("not a whole safetensors file" in problem for problem in damaged.problems)


def test_the_command_takes_what_merge_takes(
    geomerge: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    words = (
        "check", digits / "a.pt", digits / "b.pt", "--manifold", "digits", "--pick", "a>=0.8",
        "--budget", "b=0.02", "--learn", "damping", "--align", "weights", "--memory", "8GB",
        "--keep-zeros", "--learning-rate", "0.1", "--seed", "1", "--steps", "5",
    )  # fmt: skip
    good = geomerge(*words, cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "b was aligned with a" in good.stdout
    assert "inputs per pass" in good.stdout
    bad = geomerge(*words, "--pick", "beast", "--budget", "c=1", "--align", "up", cwd=tmp_path)
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 3


def test_the_command_says_it_and_exits(
    geomerge: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("preset", ["joint", "sketch", "paper"])
def test_large_merges_are_extrapolated_to_the_same_steps(
    digits: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [digits / "a.pt", digits / "b.pt"]
    both = ("a=digits", "b=digits-permuted")
    options: dict[str, Any] = {"manifold": both, "steps": 3, "preset": preset}
    tried = check_merge(files, options).time
    monkeypatch.setattr("geomerge.merging.cost._TRIAL", 0.0)
    found = check_merge(files, options).time
    assert tried is not None
    assert found is not None
    assert found["steps"] == tried["steps"]
    assert "extrapolated" in found["assumed"]
    assert all(seconds > 0 for seconds in found["parts"].values())


def test_steps_of_a_closing_leg_follow_its_gap_and_its_first_steps(digits: Path) -> None:
    experts = load_experts([digits / "a.pt", digits / "b.pt"], DataOptions(manifold=BOTH))
    planned = plan_merge(experts, MergeOptions(), Problems(strict=True))
    assert planned is not None
    preset = planned[0]
    end = preset.space.experts[0]
    far = preset.space.middle()
    near = end.weights + 0.01 * (far - end.weights)
    straight = preset.closing_steps(end, far)
    assert preset.closing_steps(end, end.weights) <= preset.closing_steps(end, near) < straight
    assert straight < preset.closing_steps(end, far, 0.001) <= preset.close_steps
    assert preset.closing_steps(end, far, -1.0) == preset.close_steps  # it stalls


class Cut(nn.Module):
    """A scale that no cheaper form is known for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x.view(-1, 8, 8) * self.scale).flatten(1))


def test_what_is_measured_input_by_input_is_said_with_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("geomerge.merging.cost._TRIAL", 0.0)
    monkeypatch.setattr("geomerge.metrics.kronecker.uses.LOCAL", frozenset())
    monkeypatch.setattr("geomerge.metrics.kronecker.tracing.LOCAL", frozenset())
    task = load_task("digits")
    experts = [Expert.from_module(Cut(), task=task) for _ in range(2)]
    found = check([replace(e, inputs=task.train.inputs) for e in experts], steps=3)
    (said,) = [note for note in found.notes if "input by input" in note]
    assert "scale" in said
    assert found.time is not None
    assert found.time["one_by_one"]["scale"] > 0


def test_large_networks_are_checked_by_passes_of_few_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("geomerge.merging.cost._TRIAL", 0.0)
    for name in ("_OPERATIONS", "_SCREENED"):  # as if each pass were long
        monkeypatch.setattr(f"geomerge.evaluation.plausibility.{name}", 1)
    monkeypatch.setattr("geomerge.metrics.registry._LONG", -1.0)
    task = load_task("digits")
    modules = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2)]
    experts = [Expert.from_module(module, task) for module in modules]
    passed = 0

    def count(layer: nn.Module, given: Any, out: Any) -> None:
        nonlocal passed
        passed += len(out)

    for expert in experts:
        expert.network.module.register_forward_hook(count)
    found = check(experts, steps=3)
    assert found.problems == []
    assert found.networks["a"]["examples"] == 6
    assert passed < 60


def test_estimates_count_what_a_merge_measures() -> None:
    x, labels = torch.randn(120, 4), torch.arange(120) % 2
    tasks = [Task.from_tensors(x, labels, name=name) for name in ("one", "other")]
    nets = [nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)) for _ in tasks]
    found = [Expert.from_module(net, task) for net, task in zip(nets, tasks, strict=True)]
    experts = [replace(expert, inputs=expert.task.train.inputs) for expert in found if expert.task]
    times = {}
    for head in ("shared", "separate"):
        planned = plan_merge(experts, MergeOptions(head=head), Problems(strict=True))
        assert planned is not None
        preset = planned[0]
        times[head], _ = preset.measuring(preset.stages[0])
        # The plane of a report has no more examples than the selection splits.
        of_plane = 2 * len(tasks[0].select.labels) * grid_points(preset.space) ** 2
        assert cost._drawn(preset) == of_plane
    assert times["separate"] == 3 * times["shared"]  # of each head, and their sum
