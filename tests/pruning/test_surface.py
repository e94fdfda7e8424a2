from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geomerge import Network
from geomerge.metrics import functional_change
from geomerge.pruning import surface as surfaces
from geomerge.pruning.sparsify import SparsifyResult, sparsify
from geomerge.pruning.surface import plane_of, surface_of

QUICK: dict[str, Any] = {"steps": 6, "stages": 3, "points": 8}


@pytest.fixture(scope="module")
def run(digits: Path) -> SparsifyResult:
    return sparsify(digits / "a.pt", sparsity=0.9, paths=2, **QUICK)


def in_a_plane(count: int, n: int) -> Tensor:  # (count, n)
    generator = torch.Generator().manual_seed(0)
    across = torch.randn(2, n, generator=generator)
    return torch.randn(count, 2, generator=generator) @ across


@pytest.mark.parametrize("held", [1, 3, 100])
def test_a_plane_keeps_the_distances_in_it(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = in_a_plane(7, 500)
    monkeypatch.setattr(surfaces, "_HELD", held * 500)
    plane = plane_of(len(points), lambda k: points[k])
    assert plane.share == pytest.approx(1)
    distances = torch.cdist(points.double(), points.double())
    assert torch.cdist(plane.coordinates, plane.coordinates) == pytest.approx(distances, abs=1e-3)
    assert plane.directions @ plane.directions.T == pytest.approx(torch.eye(2), abs=1e-5)
    assert plane.coordinates @ plane.directions.double() == pytest.approx(points, abs=1e-4)


def test_a_plane_takes_the_principal_directions() -> None:
    points = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    plane = plane_of(4, lambda k: points[k])
    assert plane.share == pytest.approx(25 / 30)
    assert plane.directions == pytest.approx(torch.eye(4)[:2], abs=1e-6)
    assert plane.coordinates == pytest.approx(points.double()[:, :2], abs=1e-6)


def test_statistics_go_along_and_do_not_count() -> None:
    points = in_a_plane(5, 40)
    more = torch.cat([points, 1000 * points[:, :3]], dim=1)
    plane, alone = plane_of(5, lambda k: more[k], 40), plane_of(5, lambda k: points[k])
    assert plane.share == pytest.approx(1)
    assert torch.equal(plane.coordinates, alone.coordinates)
    assert plane.coordinates @ plane.directions.double() == pytest.approx(more, abs=1e-1)


@pytest.mark.parametrize(("scale", "spanned"), [(1.0, 1), (0.0, 0)])
def test_less_than_a_plane(scale: float, spanned: int) -> None:
    points = scale * torch.tensor([0.0, 1.0, 3.0])[:, None] * torch.ones(16)
    plane = plane_of(3, lambda k: points[k])
    assert plane.share == pytest.approx(1)
    assert plane.directions.norm(dim=1).round().sum() == spanned
    assert plane.coordinates[:, 0] == pytest.approx(points.double()[:, 0] * 4, abs=1e-5)
    assert plane.coordinates[:, 1].abs().max() == 0


def test_variances_stay_possible() -> None:
    network = Network(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    w = surfaces._possible(network, torch.full((network.n,), -1.0))
    parts = network.unravel(w)
    assert parts["1.running_var"].tolist() == [0, 0]
    assert parts["1.running_mean"].tolist() == [-1, -1]


def test_the_surface_is_measured_from_the_start(run: SparsifyResult) -> None:
    surface = surface_of(run)
    column, row = (int((values == 0).nonzero()) for values in (surface.xs, surface.ys))
    assert surface.heights[row, column] == 0
    assert (surface.heights > 0).sum() == surface.heights.numel() - 1
    assert [track.chosen for track in surface.tracks] == [True, False]
    assert {track.name for track in surface.tracks} == {"walk 1", "walk 2"}
    assert 0.3 < surface.share < 1
    last = run.path.at(1.0) - run.dense.weights
    for track in surface.tracks:
        assert track.points[0].abs().max() == pytest.approx(0, abs=1e-4)
        for k, values in enumerate((surface.xs, surface.ys)):
            assert values[0] < track.points[:, k].min()
            assert values[-1] > track.points[:, k].max()
    assert surface.tracks[0].points[-1].norm() <= last.norm()


def test_a_walk_of_two_steps_lies_in_its_plane(digits: Path, tmp_path: Path) -> None:
    run = sparsify(digits / "a.pt", sparsity=0.9, folder=tmp_path, **{**QUICK, "stages": 1})
    surface = surface_of(run)
    assert surface.share == pytest.approx(1)
    (track,) = surface.tracks
    points = torch.stack([run.path.at(t) for t in run.path.ts]).double()
    assert len(points) == 3
    distances = torch.cdist(points, points)
    assert torch.cdist(track.points, track.points) == pytest.approx(distances, abs=1e-3)
    problem, network = run.problem, run.dense.network
    x = problem.task.select.inputs.sample(surfaces.INPUTS, problem.seed).batch(slice(None))
    logits = [network.logits(w, x) for w in (problem.weights, run.chosen.weights)]
    assert track.change == pytest.approx(functional_change(*logits, problem.output))
    # Between the four points of the grid around its end the surface comes by the end's own height.
    column = int((surface.xs < track.points[-1, 0]).sum())
    row = int((surface.ys < track.points[-1, 1]).sum())
    around = surface.heights[row - 1 : row + 1, column - 1 : column + 1]
    assert 0.9 * around.min() <= track.change <= 1.1 * around.max()
