"""Shifts and flips of images in walks: what they keep, and walks on them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.data import Task
from geomerge.data.changed_images import AUGMENT, ChangedImages
from geomerge.expert import Expert

IMAGES = torch.rand(40, 2, 16, 24, generator=torch.Generator().manual_seed(0)) + 0.1


def shifted(x: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Return the image whose pixel (i, j) is pixel (i + down, j + right), zero beyond."""
    padded = torch.nn.functional.pad(x, (3, 3, 2, 2))
    high, wide = x.shape[-2:]
    return padded[..., 2 + down : 2 + down + high, 3 + right : 3 + right + wide]


@pytest.mark.parametrize("kind", AUGMENT)
def test_images_are_shifted_by_an_eighth_and_flipped(kind: str) -> None:
    found = ChangedImages(kind, seed=1)(IMAGES, 3)
    assert isinstance(found, torch.Tensor)
    seen = set()
    for image, changed in zip(IMAGES, found, strict=True):
        kinds = [
            (flipped, down, right)
            for flipped, down, right in itertools.product((False, True), range(-2, 3), range(-3, 4))
            if shifted(image.flip(2) if flipped else image, down, right).equal(changed)
        ]
        assert len(kinds) == 1
        seen.add(kinds[0])
    assert {flipped for flipped, _, _ in seen} == ({False, True} if kind == "flips" else {False})
    assert len(seen) > 10


def test_changes_are_those_of_the_number_of_a_batch() -> None:
    change = ChangedImages("flips", seed=1)
    first, again, other = (change(IMAGES, number) for number in (3, 3, 4))
    assert isinstance(first, torch.Tensor)
    assert first.equal(again)
    assert not first.equal(other)


def of_images(seed: int) -> Expert:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    pairs = [(x[k : k + 20], y[k : k + 20]) for k in (0, 20, 40)]
    task = Task.from_tensors(*pairs[0], select=pairs[1], test=pairs[2], name="images")
    return Expert.from_module(module, task)


def test_a_walk_learns_on_changed_images_and_pulls_nowhere_at_its_teacher() -> None:
    experts = [of_images(seed) for seed in (0, 1)]
    merged = gm.merge(experts, steps=3, augment="flips")
    walker = merged.preset.walker
    expert = merged.space.experts[0]
    direction = walker.direction(expert)
    seen, usual = direction.draw()[0], walker.direction(expert)
    assert isinstance(seen, torch.Tensor)
    assert expert.inputs is not None
    known = {x.numpy().tobytes() for x in expert.inputs.batch(slice(None))}  # type: ignore
    assert any(x.numpy().tobytes() not in known for x in seen)
    assert usual(expert.weights)[0] == pytest.approx(0, abs=1e-6)


def test_images_of_a_few_pixels_are_shifted_too() -> None:
    x = torch.rand(30, 1, 5, 5) + 0.1
    assert not ChangedImages("shifts", seed=0)(x, 0).equal(x)  # type: ignore[union-attr]


def test_walks_of_merges_and_comparisons_learn_on_changed_images() -> None:
    experts = [of_images(seed) for seed in (0, 1)]
    losses = []
    for augment in (None, "flips"):
        made = gm.merge(experts, steps=2, augment=augment)
        first, second = made.space.experts
        losses.append(made.preset.walker.direction(first)(second.weights)[0])
    assert losses[0] != losses[1]
    found = gm.compare(experts, only=("joint-walk", "average"), steps=3, augment="shifts")
    assert {row.method.name for row in found.rows if row.result} >= {"joint-walk", "average"}


def test_images_keep_the_order_of_their_numbers_in_memory() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = IMAGES.contiguous(memory_format=layout)
        changed = ChangedImages("flips", seed=0)(x, 0)
        assert isinstance(changed, torch.Tensor)
        assert changed.stride() == x.stride()
