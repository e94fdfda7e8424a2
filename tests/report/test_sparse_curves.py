from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geomerge.pruning.plan import PlanStep
from geomerge.pruning.reconfigure import reconfigure
from geomerge.pruning.sparsify import SparsifyResult, sparsify
from geomerge.pruning.surface import surface_of
from geomerge.report.paths import draw_paths
from geomerge.report.sparse import reconfigure_report, sparsify_report
from geomerge.report.sparse_curves import draw_moves, draw_sparsity

Drawn = Callable[[Callable[[Any, Path], None], Any, Path], bytes]

QUICK: dict[str, Any] = {"steps": 6, "stages": 3, "points": 8}


def point(**values: float) -> dict[str, float]:
    usual = {"t": 0.0, "zeros": 0.0, "removed": 0, "drift": 0.0, "select": 0.9, "naive": 0.9}
    return {**usual, **values}


def report(*curve: dict[str, float], removed: dict[str, list[int]] | None = None) -> dict[str, Any]:
    return {"curve": list(curve), "dense_held_out": 0.9, "removed": removed or {}}


@pytest.fixture(scope="module")
def run(digits: Path) -> SparsifyResult:
    return sparsify(digits / "a.pt", sparsity=0.9, paths=2, **QUICK)


def test_pictures_of_a_run_are_the_same_every_time(
    drawn: Drawn, run: SparsifyResult, tmp_path: Path
) -> None:
    content = json.loads(json.dumps(sparsify_report(run, {}).to_json()))
    assert drawn(draw_sparsity, content, tmp_path) != drawn(
        draw_sparsity, {**content, "curve": content["curve"][:-1]}, tmp_path
    )
    surface = surface_of(run)
    assert drawn(draw_paths, surface, tmp_path) == drawn(draw_paths, surface_of(run), tmp_path)


def test_moves_of_a_plan(drawn: Drawn, digits: Path, tmp_path: Path) -> None:
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
def test_reports_of_all_kinds_are_drawn(
    drawn: Drawn, content: dict[str, Any], tmp_path: Path
) -> None:
    drawn(draw_sparsity, content, tmp_path)
