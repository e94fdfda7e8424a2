"""Views of images: their number, and that shifted ones are the images again."""

from __future__ import annotations

import pytest
import torch

from geomerge.continual.image_views import VIEWS, class_views, map_views


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
