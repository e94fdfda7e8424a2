"""Views of images: their number, their shifts, and the note where inputs have none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.continual.feature_merge import FeatureCase, merge_features
from geomerge.continual.image_views import VIEWS, class_views, map_views
from geomerge.continual.memory import Experience
from geomerge.continual.options import ContinualOptions
from geomerge.data.inputs import as_they_are


def test_square_images_have_four_other_views_for_a_map() -> None:
    assert len(map_views(torch.randn(2, 3, 4, 4))) == 4


@pytest.mark.parametrize("shape", [(2, 9), (2, 3, 4, 5)])
def test_other_inputs_have_none(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert map_views(x) == []
    assert all(class_views(x, kind) == [] for kind in VIEWS)


def test_images_are_shifted_in_four_directions() -> None:
    x = torch.randn(2, 1, 32, 32)
    down, up, right, left = class_views(x, "shifted")
    torch.testing.assert_close(down[:, :, 2:], x[:, :, :-2])
    torch.testing.assert_close(up[:, :, :-2], x[:, :, 2:])
    torch.testing.assert_close(right[..., 2:], x[..., :-2])
    torch.testing.assert_close(left[..., :-2], x[..., 2:])


def test_mirrored_views_are_the_mirrored_images_and_four_shifted_ones() -> None:
    x = torch.randn(2, 1, 8, 8)
    mirrored, *shifted = class_views(x, "mirrored")
    torch.testing.assert_close(mirrored, x.flip(3))
    torch.testing.assert_close(shifted[1][:, :, :-1], x.flip(3)[:, :, 1:])
    assert len(shifted) == 4
    assert class_views(x, "none") == []


@pytest.mark.parametrize(("shape", "told"), [((3, 4, 4), False), ((48,), True)])
def test_a_note_says_where_inputs_have_no_views(shape: tuple[int, ...], told: bool) -> None:
    torch.manual_seed(0)
    network = gm.Network(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))
    x, y = torch.randn(60, *shape), torch.arange(60) % 3
    free = torch.ones(network.n, dtype=torch.bool)
    experience = Experience(as_they_are(x), labels=y)
    case = FeatureCase(network, network.initial, network.initial, experience, free)
    options = ContinualOptions(sketch_inputs=20, views="mirrored")
    found = merge_features(case, None, options, 10**9)
    assert any("are of square images" in note for note in found.notes) == told
