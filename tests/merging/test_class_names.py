"""Classes of one name in two networks have one number in a shared head."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from PIL import Image
from torch import nn

import geomerge as gm
from geomerge.certificate.verify import verify_run
from geomerge.errors import OptionError, Problems
from geomerge.evaluation.drift import predicted_change
from geomerge.loading import DataOptions
from geomerge.merging.prepare import prepare
from geomerge.runs import run_merge


def named_task(name: str, *classes: str) -> gm.Task:
    generator = torch.Generator().manual_seed(len(name))
    y = torch.arange(60) % len(classes)
    task = gm.Task.from_tensors(torch.randn(60, 4, generator=generator), y, name=name)
    return replace(task, class_names=classes)


def network(task: gm.Task, seed: int) -> gm.Expert:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return gm.Expert.from_module(module, task)


def prepared(*experts: gm.Expert, **options: Any) -> Any:
    return prepare(list(experts), gm.MergeOptions(**options), Problems(strict=True))


def test_outputs_and_labels_are_numbered_by_name() -> None:
    a = network(named_task("one", "cat", "dog", "fox"), 0)
    b = network(named_task("two", "fox", "cat", "dog"), 1).with_sketch()
    found = prepared(a, b)
    _, second = found.space.experts
    assert second.task.class_names == ("cat", "dog", "fox")
    x = torch.randn(7, 4)
    before, after = b.network.logits(b.weights, x), second.network.logits(second.weights, x)
    torch.testing.assert_close(after, before[:, [1, 2, 0]])
    for split in ("train", "select", "test"):
        assert second.accuracy(split) == b.accuracy(split)
    assert any(
        "numbered as the first network's, by their names: 'cat' = 0" in n for n in found.notes
    )
    moved = b.weights + 0.01 * torch.randn(b.network.n, generator=torch.Generator().manual_seed(2))
    here = prepared(a, replace(b, weights=moved)).space.experts[1].weights
    assert predicted_change(second, here) == pytest.approx(predicted_change(b, moved), rel=1e-4)


def test_heads_of_their_own_stay_as_they_are() -> None:
    a = network(named_task("one", "cat", "dog", "fox"), 0)
    b = network(named_task("two", "fox", "cat", "dog"), 1)
    assert prepared(a, b, head="separate").space.experts[1].task.class_names[0] == "fox"


def test_other_classes_of_one_name_are_refused() -> None:
    a = network(named_task("one", "cat", "dog", "fox"), 0)
    b = network(named_task("two", "ant", "cat", "dog"), 1)
    with pytest.raises(OptionError, match="'cat' is class 0 of one and class 1 of two"):
        prepared(a, b)


@pytest.mark.slow
def test_a_run_of_folders_is_verified(tmp_path: Path) -> None:
    for k, name in enumerate("abc"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (4, 4), 60 * k + i).save(tmp_path / "images" / name / f"{i}.png")
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
        checkpoint = gm.Checkpoint(module.state_dict(), {"architecture": "mlp"})
        gm.save_checkpoint(tmp_path / f"{name}.pt", checkpoint)
    tasks = (f"a={tmp_path / 'images'}", f"b={tmp_path / 'images'}@2,0,1")
    options = gm.MergeOptions(steps=4, points=8, damping=1e-2)
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    folder, report, _ = run_merge(files, options, DataOptions(manifold=tasks), out=tmp_path / "r")
    assert report["networks"]["b"]["class_order"] == [1, 2, 0]
    found = verify_run(folder)
    assert [c for c in found.claims if c.holds is False] == []
    assert {c.name for c in found.claims if c.holds is None} == {"identity: the path ends at b"}


def test_model_folders_of_two_orders(tmp_path: Path) -> None:
    base = model_folders.write_base(tmp_path / "base")
    model_folders.write_fine_tune(tmp_path / "one", base, "count")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    labels = dict(enumerate(("many", "single", "pair")))
    config |= {"id2label": labels, "label2id": {v: k for k, v in labels.items()}}
    (tmp_path / "two" / "config.json").write_text(json.dumps(config))
    a, b = (gm.Expert.load(tmp_path / name) for name in ("one", "two"))
    second = prepared(a, b).space.experts[1]
    x = {"input_ids": torch.tensor([[2, 5, 3]])}
    before, after = b.network.logits(b.weights, x), second.network.logits(second.weights, x)
    torch.testing.assert_close(after, before[:, [1, 2, 0]])
    assert second.meta["config"]["id2label"]["0"] == "single"
