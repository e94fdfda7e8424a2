from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geomerge import Network
from geomerge.metrics import functional_change
from geomerge.pruning import surface as surfaces
from geomerge.pruning.plan import PlanStep
from geomerge.pruning.reconfigure import reconfigure
from geomerge.pruning.sparsify import SparsifyResult, sparsify
from geomerge.pruning.surface import Surface, Track, plane_of, surface_of
from geomerge.report.paths import draw_paths
from geomerge.report.sparse import reconfigure_report, sparsify_report
from geomerge.report.sparse_curves import draw_moves, draw_sparsity

PNG = b"\x89PNG\r\n\x1a\n"
QUICK: dict[str, Any] = {"steps": 6, "stages": 3, "points": 8}


def drawn(draw: Callable[[Any, Path], None], what: Any, folder: Path) -> bytes:
    """Draw twice and return what is the same both times."""
    one, other = folder / "one.png", folder / "other.png"
    draw(what, one)
    draw(what, other)
    content = one.read_bytes()
    assert content.startswith(PNG)
    assert content == other.read_bytes()
    return content


def point(**values: float) -> dict[str, float]:
    usual = {"t": 0.0, "zeros": 0.0, "removed": 0, "drift": 0.0, "select": 0.9, "naive": 0.9}
    return {**usual, **values}


def report(*curve: dict[str, float], removed: dict[str, list[int]] | None = None) -> dict[str, Any]:
    return {"curve": list(curve), "dense_held_out": 0.9, "removed": removed or {}}


@pytest.fixture(scope="module")
def run(digits: Path) -> SparsifyResult:
    return sparsify(digits / "a.pt", sparsity=0.9, paths=2, **QUICK)


def test_pictures_of_a_run_are_the_same_every_time(run: SparsifyResult, tmp_path: Path) -> None:
    content = json.loads(json.dumps(sparsify_report(run, {}).to_json()))
    assert drawn(draw_sparsity, content, tmp_path) != drawn(
        draw_sparsity, {**content, "curve": content["curve"][:-1]}, tmp_path
    )
    surface = surface_of(run)
    assert drawn(draw_paths, surface, tmp_path) == drawn(draw_paths, surface_of(run), tmp_path)


def test_moves_of_a_plan(digits: Path, tmp_path: Path) -> None:
    plan = [PlanStep("small", remove={"layers.0": 100}), PlanStep("back", restore={"layers.0": 50})]
    result = reconfigure(digits / "a.pt", plan, **QUICK)
    content = json.loads(json.dumps(reconfigure_report(result, {}).to_json()))
    assert drawn(draw_moves, content, tmp_path) != drawn(
        draw_moves, {**content, "configurations": content["configurations"][:1]}, tmp_path
    )


@pytest.mark.parametrize(
    "content",
    [
        report(point(), point(zeros=0.5, drift=1e-4), point(zeros=0.999, drift=20.0, naive=0.1)),
        report(point(), point(zeros=0.25, drift=0.02), point(zeros=0.5, drift=0.03)),
        report(point(), point(removed=3, drift=0.02), removed={"0": [1, 2, 3]}),
        report(point(), point()),
        report(point(), point(zeros=1.0, drift=3.0, select=0.1)),
    ],
    ids=["few left", "2:4", "units", "nothing gone", "nothing left"],
)
def test_reports_of_all_kinds_are_drawn(content: dict[str, Any], tmp_path: Path) -> None:
    drawn(draw_sparsity, content, tmp_path)


def surface_with(heights: Tensor) -> Surface:
    rows, columns = heights.shape
    track = Track("walk 1", True, 1.0, torch.tensor([[0.0, 0.0], [3.0, 1.0]]), 0.1)
    xs, ys = torch.arange(columns) - 1.0, torch.arange(rows) - 1.0
    return Surface(xs, ys, heights, [track, replace(track, chosen=False)], 0.5, 10)


def test_surfaces_of_all_kinds_are_drawn(tmp_path: Path) -> None:
    bowl = torch.linspace(-1, 3, 9, dtype=torch.float64).square()
    bowl = bowl[:, None] + bowl
    whole = drawn(draw_paths, surface_with(bowl), tmp_path)
    bowl[-1, -1] = float("nan")
    bowl[-1, -2] = float("inf")
    assert drawn(draw_paths, surface_with(bowl), tmp_path) != whole
    drawn(draw_paths, surface_with(torch.zeros(9, 9, dtype=torch.float64)), tmp_path)
    drawn(draw_paths, surface_with(torch.full((9, 9), 0.3, dtype=torch.float64)), tmp_path)


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
