from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.pruning.surface import Surface, Track
from geomerge.report.paths import draw_paths

Drawn = Callable[[Callable[[Any, Path], None], Any, Path], bytes]


def surface_with(heights: Tensor) -> Surface:
    rows, columns = heights.shape
    track = Track("walk 1", True, 1.0, torch.tensor([[0.0, 0.0], [3.0, 1.0]]), 0.1)
    xs, ys = torch.arange(columns) - 1.0, torch.arange(rows) - 1.0
    return Surface(xs, ys, heights, [track, replace(track, chosen=False)], 0.5, 10)


def test_surfaces_of_all_kinds_are_drawn(drawn: Drawn, tmp_path: Path) -> None:
    bowl = torch.linspace(-1, 3, 9, dtype=torch.float64).square()
    bowl = bowl[:, None] + bowl
    whole = drawn(draw_paths, surface_with(bowl), tmp_path)
    bowl[-1, -1] = float("nan")
    bowl[-1, -2] = float("inf")
    assert drawn(draw_paths, surface_with(bowl), tmp_path) != whole
    drawn(draw_paths, surface_with(torch.zeros(9, 9, dtype=torch.float64)), tmp_path)
    drawn(draw_paths, surface_with(torch.full((9, 9), 0.3, dtype=torch.float64)), tmp_path)
