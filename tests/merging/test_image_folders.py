"""Merges of folders that classify images, with heads of their own, one behind the other, or one."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import model_folders  # keeps transformers quiet
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import geomerge as gm
from geomerge.errors import CheckpointError
from geomerge.merging.model_folders import write_model_folders

CLASSES = {
    "animals": ("cat", "dog"),
    "vehicles": ("car", "ship", "train"),
    "plants": ("oak", "fir"),
}
SIDE = 8


def write_folder(folder: Path, labels: tuple[str, ...], base: Path | None = None) -> Path:
    """A tiny ViT, a small random distance from a base."""
    names = dict(enumerate(labels))
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        image_size=SIDE, patch_size=4, num_channels=1, id2label=names,
        label2id={label: k for k, label in names.items()},
    )  # fmt: skip
    torch.manual_seed(len(labels[0]) + len(labels))
    model = ViTForImageClassification(config).eval()
    if base is not None:
        trunk = ViTForImageClassification.from_pretrained(base).vit.state_dict()
        model.vit.load_state_dict({k: v + 0.02 * torch.randn(v.shape) for k, v in trunk.items()})
    model.save_pretrained(folder)
    return folder


def write_images(file: Path, classes: int) -> None:
    draw = np.random.default_rng(classes)
    y = np.arange(120) % classes
    x = draw.integers(0, 120, (120, 1, SIDE, SIDE)) + 40 * y[:, None, None, None]
    np.savez(file, x=x.astype(np.uint8), y=y)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert model_folders.WORDS
    place = tmp_path_factory.mktemp("image-folders")
    base = write_folder(place / "base", ("one", "other"))
    for name, labels in CLASSES.items():
        write_folder(place / name, labels, base)
        write_images(place / f"{name}.npz", len(labels))
    return place


def merged(place: Path, names: tuple[str, str], head: str, folder: Path) -> torch.nn.Module:
    """Write the folders of a merge, and return the merged module."""
    with chdir(place):
        found = gm.merge(
            names, base="base", head=head, metric="euclidean", preset="joint", steps=3, points=8,
            manifold=tuple(f"{k}={name}.npz" for k, name in zip("ab", names, strict=True)),
            max_inputs=40,
        )  # fmt: skip
        write_model_folders(folder, found)
    return found.module()


def logits(folder: Path, x: torch.Tensor) -> torch.Tensor:
    model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        found: torch.Tensor = model(x).logits
    return found


def test_separate_heads_of_different_sizes(place: Path, tmp_path: Path) -> None:
    run, x = tmp_path, torch.randn(4, 1, SIDE, SIDE)
    module = merged(place, ("animals", "vehicles"), "separate", run)
    with torch.no_grad():
        whole = module(x).logits
    assert torch.allclose(logits(run / "animals", x), whole[:, :2], atol=1e-6)
    assert torch.allclose(logits(run / "vehicles", x), whole[:, 2:], atol=1e-6)
    model = AutoModelForImageClassification.from_pretrained(run / "vehicles")
    assert list(model.config.id2label.values()) == list(CLASSES["vehicles"])
    trunks = [
        AutoModelForImageClassification.from_pretrained(run / name).vit.state_dict()
        for name in ("animals", "vehicles")
    ]
    assert all(torch.equal(trunks[0][key], trunks[1][key]) for key in trunks[0])


def test_classes_one_behind_the_other(place: Path, tmp_path: Path) -> None:
    run = tmp_path
    module = merged(place, ("animals", "vehicles"), "offset", run)
    x = torch.randn(4, 1, SIDE, SIDE)
    model = AutoModelForImageClassification.from_pretrained(run, local_files_only=True)
    assert list(model.config.id2label.values()) == [*CLASSES["animals"], *CLASSES["vehicles"]]
    with torch.no_grad():
        assert torch.allclose(model(x).logits, module(x).logits, atol=1e-6)


def test_one_head_for_as_many_classes(place: Path, tmp_path: Path) -> None:
    merged(place, ("animals", "plants"), "shared", tmp_path)
    assert logits(tmp_path, torch.randn(4, 1, SIDE, SIDE)).shape == (4, 2)
    with chdir(place), pytest.raises(CheckpointError, match="different heads"):
        gm.merge(["animals", "vehicles"], head="shared")


def test_sketches_alone(place: Path) -> None:
    with chdir(place):
        experts = [gm.Expert.load(name, f"{name}.npz") for name in ("animals", "vehicles")]
        known = [expert.with_sketch(inputs=40).sketch for expert in experts]
        blind = [
            gm.Expert.from_module(expert.module(), sketch=sketch)
            for expert, sketch in zip(experts, known, strict=True)
        ]
        found = gm.merge(blind, base="base", head="separate", preset="sketches")
    assert found.module("b")(torch.randn(2, 1, SIDE, SIDE)).logits.shape == (2, 3)
